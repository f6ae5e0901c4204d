# Segmenter with ViT-B/16 and the Mask Transformer, with the settings of the official code.
checkpoint = (
    'augreg://B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.01-res_384'
)
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[127.5, 127.5, 127.5],
    std=[127.5, 127.5, 127.5],
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
        drop_path_rate=0.1,
        final_norm=True,
        # the default of torch and of the official code; mmseg has 1e-6
        norm_cfg=dict(type='LN', eps=1e-5),
        interpolate_mode='bilinear',
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    decode_head=dict(
        type='SegmenterMaskTransformerHead',
        in_channels=768,
        embed_dims=768,
        num_layers=2,
        num_heads=12,
        num_classes=150,
        drop_rate=0.1,
        attn_drop_rate=0.1,
        drop_path_rate=0.0,
        # the mean over valid pixels only; mmseg's default counts ignored pixels too
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0, avg_non_ignore=True),
    ),
    train_cfg=dict(),
    # The published numbers were evaluated this way: window = crop, stride = crop - 32, small images enlarged.
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(480, 480), size_divisor=16, upscale_small=True),
)
