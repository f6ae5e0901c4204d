# The frozen ViT-B/16 of DINOv3 with its linear head, with the settings of the official code.
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
    type='Segmenter',
    data_preprocessor=data_preprocessor,
    backbone=dict(
        type='SegmenterViT',
        img_size=(512, 512),
        patch_size=16,
        embed_dims=768,
        num_layers=12,
        num_heads=12,
        final_norm=True,
        norm_cfg=dict(type='LN', eps=1e-5),
        layer_scale=1e-5,
        num_registers=4,
        rope=dict(base=100, rescale=2),
        frozen_exclude=[],
        init_cfg=dict(type='Pretrained', checkpoint='dinov3://vitb16'),
    ),
    decode_head=dict(
        type='LinearHead',
        in_channels=768,
        num_classes=150,
        dropout_ratio=0.1,
        norm_cfg=dict(type='SyncBN'),
        init_cfg=dict(type='Normal', std=0.01, override=dict(name='conv_seg')),
        # the mean over all pixels, ignored ones included, as published
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0, avg_non_ignore=False),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
)
