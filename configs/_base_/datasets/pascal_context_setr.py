# Pascal Context, 60 classes, at the sizes of SETR: mmseg's pipelines. The ratios apply to the test size (520, 520).
_base_ = ['mmseg::_base_/datasets/pascal_context.py', './multi_scale_test.py']

img_ratios = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
tta_pipeline = _base_.pop('multi_scale_test')
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=(int(520 * r), int(520 * r)), keep_ratio=True) for r in img_ratios
]
# Loaders that refuse damaged files, see docs/training.md
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[:2] = [dict(type='LoadImage'), dict(type='LoadLabelMap')]
test_pipeline[0], test_pipeline[2] = train_pipeline[:2]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
