# Segmenter with ViT-L/16 and the linear decoder, with the settings of the official code.
_base_ = './segmenter_vit-l16_mask.py'

model = dict(
    decode_head=dict(
        _delete_=True,
        type='LinearHead',
        in_channels=1024,
        num_classes=150,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0, avg_non_ignore=True),
    )
)
