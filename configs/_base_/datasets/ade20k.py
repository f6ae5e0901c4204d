# ADE20K at crop 512: mmseg's pipelines, with the multi-scale test of the paper.
_base_ = 'mmseg::_base_/datasets/ade20k.py'

# Ratios of the test size (2048, 512), as the official code scales them; mmseg 1.x scales the original image.
img_ratios = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(int(2048 * r), int(512 * r)), keep_ratio=True) for r in img_ratios],
            [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
