# The Mask Transformer on the frozen ViT-L/14 of DINOv2 on ADE20K, 40k iterations, batch 16 on 8 GPUs.
# Not a published experiment.
# tools/dist_train.sh configs/segmenter/segmenter_dinov2-l_mask-frozen_8xb2-40k_ade20k.py 8
# The recipe is explained in segmenter_dinov2-b_mask-frozen_8xb2-40k_ade20k.py.
_base_ = './segmenter_dinov2-b_mask-frozen_8xb2-40k_ade20k.py'

model = dict(
    backbone=dict(embed_dims=1024, num_layers=24, num_heads=16, init_cfg=dict(checkpoint='dinov2://vitl14')),
    decode_head=dict(in_channels=1024, embed_dims=1024, num_heads=16),
)
