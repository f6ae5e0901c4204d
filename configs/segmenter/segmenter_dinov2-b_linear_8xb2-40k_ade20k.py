# A linear layer on the frozen ViT-B/14 of DINOv2 on ADE20K, the published recipe: 40k iterations, batch 16.
# Published mIoU, single-scale / multi-scale + flip: paper 47.3 / -.
# tools/dist_train.sh configs/segmenter/segmenter_dinov2-b_linear_8xb2-40k_ade20k.py 8
# "paper" is table 10 of DINOv2 (arXiv 2304.07193).
_base_ = [
    '../_base_/models/segmenter_dinov2-b14_linear.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/dinov2_40k.py',
]

train_dataloader = dict(batch_size=2)
