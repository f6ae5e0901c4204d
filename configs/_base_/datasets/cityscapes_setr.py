# Cityscapes at crop 768 and the sizes of SETR: mmseg's pipelines, with SETR's ratios of the test size (2049, 1025).
_base_ = 'mmseg::_base_/datasets/cityscapes_768x768.py'

img_ratios = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(int(2049 * r), int(1025 * r)), keep_ratio=True) for r in img_ratios],
            [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
