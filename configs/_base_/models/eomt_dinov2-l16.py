# EoMT with DINOv2's ViT-L with registers, with the settings of the official code: patches of 14 pixels are resized to
# 16 as by timm, and the position embedding of the class token is added to the token.
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,
    size=(512, 512),
)
model = dict(
    type='EoMT',
    data_preprocessor=data_preprocessor,
    backbone=dict(
        type='SegmenterViT',
        img_size=(512, 512),
        patch_size=16,
        embed_dims=1024,
        num_layers=24,
        num_heads=16,
        final_norm=True,
        norm_cfg=dict(type='LN', eps=1e-6),
        layer_scale=1e-5,
        num_registers=4,
        cls_pos_embed=False,
        interpolate_antialias=True,
        init_cfg=dict(type='Pretrained', checkpoint='dinov2://vitl14_reg', resize_patches='bicubic'),
    ),
    decode_head=dict(
        type='EoMTHead',
        in_channels=1024,
        num_queries=100,
        num_blocks=4,
        num_classes=150,
        loss_decode=dict(type='MaskClassificationLoss'),
    ),
    train_cfg=dict(),
    # windows of the height of the image, as few as cover its width, evenly spaced
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(512, 512), even_windows=True, upscale_small=True),
)
