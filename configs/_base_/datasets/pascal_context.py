# Pascal Context, 60 classes: mmseg's dataset at the sizes of the official code, which resizes the short side to 520
# (mmseg resizes the long side), with the multi-scale test of the paper.
_base_ = ['mmseg::_base_/datasets/pascal_context.py', './multi_scale_test.py']

crop_size = (480, 480)
train_pipeline = [
    dict(type='LoadImage'),
    dict(type='LoadLabelMap'),
    dict(type='RandomResize', scale=(4160, 520), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImage'),
    dict(type='Resize', scale=(4160, 520), keep_ratio=True),
    # Labels are loaded after Resize: scores are at the original size.
    dict(type='LoadLabelMap'),
    dict(type='PackSegInputs'),
]
# As in the official code, the ratios apply to the test size (4160, 520).
img_ratios = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
tta_pipeline = _base_.pop('multi_scale_test')
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=(int(4160 * r), int(520 * r)), keep_ratio=True) for r in img_ratios
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
