# Cityscapes at crop 1024 as in EoMT's code: the long side to 512..2048 in training, images of 1024x2048 as they are
# in the test. ade20k_eomt.py says what differs.
_base_ = './cityscapes.py'

crop_size = (1024, 1024)
train_pipeline = [
    dict(type='LoadImage'),
    dict(type='LoadLabelMap'),
    dict(type='PhotoMetricDistortion', hue_delta=9),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomResize', scale=crop_size, ratio_range=(0.5, 2.0), keep_ratio=True, backend='pillow'),
    dict(type='Pad', size=crop_size, pad_val=dict(img=0, seg=255)),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='PackSegInputs'),
]
test_pipeline = _base_.test_pipeline
test_pipeline[1] = dict(type='Resize', scale=(100000, 1024), keep_ratio=True, backend='pillow')
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=(100000, int(1024 * r)), keep_ratio=True, backend='pillow') for r in _base_.img_ratios
]
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
