# The frozen ViT-B/14 of DINOv2 with the Mask Transformer.
_base_ = './segmenter_dinov2-b14_linear.py'

model = dict(
    decode_head=dict(
        _delete_=True,
        type='SegmenterMaskTransformerHead',
        in_channels=768,
        embed_dims=768,
        num_layers=2,
        num_heads=12,
        num_classes=150,
        drop_rate=0.1,
        attn_drop_rate=0.1,
        drop_path_rate=0.0,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0, avg_non_ignore=True),
    )
)
