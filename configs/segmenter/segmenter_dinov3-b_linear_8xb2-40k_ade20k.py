# A linear layer on the frozen ViT-B/16 of DINOv3 on ADE20K, the published recipe: 40k iterations, batch 16.
# Published mIoU, single-scale / multi-scale + flip: official 51.8 / -.
# tools/dist_train.sh configs/segmenter/segmenter_dinov3-b_linear_8xb2-40k_ade20k.py 8
# "official" is MODEL_CARD.md of github.com/facebookresearch/dinov3. The weights are gated: see docs/checkpoints.md.
_base_ = [
    '../_base_/models/segmenter_dinov3-b16_linear.py',
    '../_base_/datasets/ade20k_dinov3.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/dinov3_40k.py',
]

train_dataloader = dict(batch_size=2)
