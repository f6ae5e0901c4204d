# EoMT with DINOv3's ViT-L/16, with the settings of the official code.
_base_ = './eomt_dinov2-l16.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='SegmenterViT',
        img_size=(512, 512),
        patch_size=16,
        embed_dims=1024,
        num_layers=24,
        num_heads=16,
        final_norm=True,
        norm_cfg=dict(type='LN', eps=1e-5),
        layer_scale=1e-5,
        num_registers=4,
        rope=dict(base=100, rescale=2),
        init_cfg=dict(type='Pretrained', checkpoint='dinov3://vitl16'),
    )
)
