# SETR-Naive with ViT-T/16 on CamVid from scratch, for comparison with segmenter_vit-t_mask_1xb8-2k_camvid.py.
# Not a published experiment.
# tools/train.py configs/setr/setr_vit-t_naive_1xb8-2k_camvid.py
_base_ = [
    'mmseg::_base_/models/setr_naive.py',
    '../_base_/datasets/camvid.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/scratch_2k.py',
]

# On one device, BN computes the same as SyncBN and also runs on a CPU.
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    type='Segmenter',
    pretrained=None,
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3, size=(224, 224)),
    backbone=dict(
        type='SegmenterViT',
        img_size=(224, 224),
        embed_dims=192,
        num_layers=12,
        num_heads=3,
        out_indices=(2, 5, 8, 11),
        drop_rate=0.0,
        drop_path_rate=0.1,
    ),
    decode_head=dict(in_channels=192, num_classes=11, norm_cfg=norm_cfg, loss_decode=dict(avg_non_ignore=True)),
    auxiliary_head=[
        dict(
            type='SETRUPHead',
            in_channels=192,
            channels=256,
            in_index=i,
            num_classes=11,
            dropout_ratio=0,
            norm_cfg=norm_cfg,
            num_convs=1,
            up_scale=4,
            kernel_size=1,
            align_corners=False,
            loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4, avg_non_ignore=True),
        )
        for i in range(3)
    ],
    test_cfg=dict(_delete_=True, mode='slide', crop_size=(224, 224), stride=(192, 192), size_divisor=16),
)
