# The Mask Transformer on the frozen ViT-B/16 of DINOv3 on ADE20K, 40k iterations, batch 16 on 8 GPUs.
# Not a published experiment.
# tools/dist_train.sh configs/segmenter/segmenter_dinov3-b_mask-frozen_8xb2-40k_ade20k.py 8
# Images, windows and frozen backbone are those of DINOv3's linear recipe, the head is that of Segmenter (two blocks,
# dropout 0.1). A linear layer learns at 1e-3; the head's blocks get 2e-4, EoMT's rate for DINOv3: see adamw_40k.py.
_base_ = [
    '../_base_/models/segmenter_dinov3-b16_mask.py',
    '../_base_/datasets/ade20k_dinov3.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/adamw_40k.py',
]

train_dataloader = dict(batch_size=2)
