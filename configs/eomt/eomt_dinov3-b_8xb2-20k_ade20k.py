# EoMT with DINOv3's ViT-B/16 on ADE20K at crop 512, batch 16. Not a published experiment: the authors trained only
# ViT-L.
# tools/dist_train.sh configs/eomt/eomt_dinov3-b_8xb2-20k_ade20k.py 8 --amp
# Queries join the last three blocks, as in the authors' ViT-B for COCO. That one has a layer decay of 0.8 below them;
# this has none, as their ViT-L for ADE20K. Everything else is as in eomt_dinov3-l_8xb2-20k_ade20k.py.
_base_ = './eomt_dinov3-l_8xb2-20k_ade20k.py'

model = dict(
    backbone=dict(embed_dims=768, num_layers=12, num_heads=12, init_cfg=dict(checkpoint='dinov3://vitb16')),
    decode_head=dict(in_channels=768, num_blocks=3),
)
custom_hooks = [dict(type='MaskAnnealingHook', start=[0, 8150, 13040], end=[3000, 11410, 16300])]
