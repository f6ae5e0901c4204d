# ADE20K as for DINOv2's "+ms": crop 640, short side 640 to 1920 in training, and in the test five sizes with flip.
_base_ = './ade20k_640x640.py'

train_pipeline = _base_.train_pipeline
train_pipeline[2] = dict(type='RandomResize', scale=(99999999, 640), ratio_range=(1.0, 3.0), keep_ratio=True)
test_pipeline = _base_.test_pipeline
test_pipeline[1] = dict(type='Resize', scale=(99999999, 640), keep_ratio=True)
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=(99999999, int(640 * r)), keep_ratio=True) for r in (1.0, 1.32, 1.73, 2.28, 3.0)
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
