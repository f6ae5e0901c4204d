# Segmenter with ViT-S/16 and the linear decoder, with the settings of the official code.
_base_ = './segmenter_vit-s16_mask.py'

model = dict(
    decode_head=dict(
        _delete_=True,
        type='LinearHead',
        in_channels=384,
        num_classes=150,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0, avg_non_ignore=True),
    )
)
