# The multi-scale test of all datasets: every image at several sizes, each as it is and flipped.
# A dataset takes it out of its bases and sets the sizes, the first of the four lists:
#     tta_pipeline = _base_.pop('multi_scale_test')
#     tta_pipeline[1].transforms[0] = [dict(type='Resize', scale=(1024, 256), keep_ratio=True), ...]
# The name is not tta_pipeline because mmseg's bases use that one, and two bases may not share a name.
multi_scale_test = [
    dict(type='LoadImage'),
    dict(
        type='TestTimeAug',
        transforms=[
            [],
            [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)],
            [dict(type='LoadLabelMap')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
