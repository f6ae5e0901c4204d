# EoMT with DINOv2's ViT-B on Cityscapes at crop 1024, batch 16. Not a published experiment: the authors trained only
# ViT-L.
# tools/dist_train.sh configs/eomt/eomt_dinov2-b_8xb2-20k_cityscapes-1024x1024.py 8 --amp
# Queries join the last three blocks, annealed at the same parts of the training, as in the authors' ViT-B for COCO.
# Everything else is as in eomt_dinov2-l_8xb2-20k_cityscapes-1024x1024.py.
_base_ = './eomt_dinov2-l_8xb2-20k_cityscapes-1024x1024.py'

model = dict(
    backbone=dict(embed_dims=768, num_layers=12, num_heads=12, init_cfg=dict(checkpoint='dinov2://vitb14_reg')),
    decode_head=dict(in_channels=768, num_blocks=3),
)
custom_hooks = [dict(type='MaskAnnealingHook', start=[3317, 8292, 13268], end=[6634, 11609, 16585])]
