# Cityscapes at crop 768 and full resolution as in the official code, with the multi-scale test of the paper.
_base_ = ['mmseg::_base_/datasets/cityscapes.py', './multi_scale_test.py']

crop_size = (768, 768)
train_pipeline = [
    dict(type='LoadImage'),
    dict(type='LoadLabelMap'),
    dict(type='RandomResize', scale=(2048, 1024), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
# As in the official code, the ratios apply to the test size (2048, 1024).
tta_pipeline = _base_.pop('multi_scale_test')
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=(int(2048 * r), int(1024 * r)), keep_ratio=True) for r in _base_.img_ratios
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
test_pipeline = _base_.test_pipeline
test_pipeline[0], test_pipeline[2] = train_pipeline[:2]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
