# The Mask Transformer on the frozen ViT-B/14 of DINOv2 on ADE20K, 40k iterations, batch 16 on 8 GPUs.
# Not a published experiment.
# tools/dist_train.sh configs/segmenter/segmenter_dinov2-b_mask-frozen_8xb2-40k_ade20k.py 8
# Images, windows and frozen backbone are those of DINOv2's linear recipe, the head is that of Segmenter (two blocks,
# dropout 0.1). A linear layer learns at 1e-3; the head's blocks get 2e-4, EoMT's rate for DINOv3: see adamw_40k.py.
_base_ = [
    '../_base_/models/segmenter_dinov2-b14_mask.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/adamw_40k.py',
]

train_dataloader = dict(batch_size=2)
