# ADE20K at crop 512: mmseg's pipelines, with the multi-scale test of the paper.
_base_ = ['mmseg::_base_/datasets/ade20k.py', './multi_scale_test.py']

# As in the official code, the ratios apply to the test size (2048, 512); in mmseg 1.x they apply to the original image.
tta_pipeline = _base_.pop('multi_scale_test')
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=(int(2048 * r), int(512 * r)), keep_ratio=True) for r in _base_.img_ratios
]
# Loaders that refuse damaged files, see docs/training.md
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[:2] = [dict(type='LoadImage'), dict(type='LoadLabelMap')]
test_pipeline[0], test_pipeline[2] = train_pipeline[:2]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
