# ADE20K at crop 512 as in EoMT's code: the long side to 256..1024 in training, the short side to 512 in the test.
# Images are resized as by Pillow, and padded before they are normalised. Two things differ there:
# - Brightness is scaled by 0.87..1.13 and contrast around the mean of the image. PhotoMetricDistortion adds -32..32 and
#   scales contrast around 0. Its hue, in steps of two degrees, has the same limits with hue_delta=9.
# - Padding is background of all masks; here it is ignored.
_base_ = './ade20k.py'

crop_size = (512, 512)
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
test_pipeline[1] = dict(type='Resize', scale=(100000, 512), keep_ratio=True, backend='pillow')
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=(100000, int(512 * r)), keep_ratio=True, backend='pillow') for r in _base_.img_ratios
]
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
