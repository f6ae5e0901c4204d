# EoMT with DINOv3's ViT-S/16 on Cityscapes at crop 1024, batch 16. Not a published experiment: the authors trained
# only ViT-L.
# tools/dist_train.sh configs/eomt/eomt_dinov3-s_8xb2-20k_cityscapes-1024x1024.py 8 --amp
# Queries join the last three blocks, as in the authors' ViT-S for COCO. That one has a layer decay of 0.8 below them;
# this has none, as their ViT-L for ADE20K. Everything else is as in eomt_dinov3-l_8xb2-20k_cityscapes-1024x1024.py.
_base_ = './eomt_dinov3-l_8xb2-20k_cityscapes-1024x1024.py'

model = dict(
    backbone=dict(embed_dims=384, num_layers=12, num_heads=6, init_cfg=dict(checkpoint='dinov3://vits16')),
    decode_head=dict(in_channels=384, num_blocks=3),
)
custom_hooks = [dict(type='MaskAnnealingHook', start=[0, 8292, 13268], end=[3000, 11609, 16585])]
