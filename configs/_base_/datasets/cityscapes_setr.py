# Cityscapes at crop 768 and the sizes of SETR: mmseg's pipelines. The ratios apply to the test size (2049, 1025).
_base_ = ['mmseg::_base_/datasets/cityscapes_768x768.py', './multi_scale_test.py']

tta_pipeline = _base_.pop('multi_scale_test')
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=(int(2049 * r), int(1025 * r)), keep_ratio=True) for r in _base_.img_ratios
]
# Loaders that refuse damaged files, see docs/training.md
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[:2] = [dict(type='LoadImage'), dict(type='LoadLabelMap')]
test_pipeline[0], test_pipeline[2] = train_pipeline[:2]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
