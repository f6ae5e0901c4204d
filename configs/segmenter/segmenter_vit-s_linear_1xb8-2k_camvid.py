# Seg-S/16 with the linear decoder on CamVid from scratch, 2,000 iterations of 8 crops of 224.
# Not a published experiment.
# tools/train.py configs/segmenter/segmenter_vit-s_linear_1xb8-2k_camvid.py
_base_ = './segmenter_vit-s_mask_1xb8-2k_camvid.py'

model = dict(
    decode_head=dict(
        _delete_=True,
        type='LinearHead',
        in_channels=384,
        num_classes=11,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0, avg_non_ignore=True),
    )
)
