# EoMT with DINOv2's ViT-S on ADE20K at crop 512, batch 16. Not a published experiment: the authors trained only ViT-L.
# tools/dist_train.sh configs/eomt/eomt_dinov2-s_8xb2-39k_ade20k.py 8 --amp
# Queries join the last three blocks, annealed at the same parts of the training, as in the authors' ViT-S for COCO.
# Everything else is as in eomt_dinov2-l_8xb2-39k_ade20k.py.
_base_ = './eomt_dinov2-l_8xb2-39k_ade20k.py'

model = dict(
    backbone=dict(embed_dims=384, num_layers=12, num_heads=6, init_cfg=dict(checkpoint='dinov2://vits14_reg')),
    decode_head=dict(in_channels=384, num_blocks=3),
)
custom_hooks = [dict(type='MaskAnnealingHook', start=[6520, 16300, 26080], end=[13040, 22820, 32600])]
