# A small Segmenter (ViT of width 128 and depth 4, patch 12) on generated scenes: minutes on two CPU cores.
# Not a published experiment. `make demo` runs it.
# tools/train.py configs/segmenter/segmenter_demo_1xb16-1200_shapes.py
_base_ = [
    '../_base_/models/segmenter_vit-b16_mask.py',
    '../_base_/datasets/shapes.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/scratch_2k.py',
]

model = dict(
    data_preprocessor=dict(size=(96, 96)),
    backbone=dict(
        img_size=(96, 96),
        patch_size=12,
        embed_dims=128,
        num_layers=4,
        num_heads=4,
        drop_path_rate=0.0,
        init_cfg=None,
    ),
    decode_head=dict(
        in_channels=128,
        embed_dims=128,
        num_layers=2,
        num_heads=4,
        num_classes=5,
        drop_rate=0.0,
        attn_drop_rate=0.0,
    ),
    # Starting from random weights, the mask decoder teaches the encoder little at first. A linear head beside it helps.
    auxiliary_head=dict(
        type='LinearHead',
        in_channels=128,
        num_classes=5,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0, avg_non_ignore=True),
    ),
    test_cfg=dict(_delete_=True, mode='slide', crop_size=(96, 96), stride=(64, 64), size_divisor=12),
)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, begin=0, end=80, by_epoch=False),
    dict(type='PolyLR', eta_min=1e-5, power=0.9, begin=80, end=1200, by_epoch=False),
]
train_cfg = dict(max_iters=1200, val_interval=600)
default_hooks = dict(checkpoint=dict(interval=200))
