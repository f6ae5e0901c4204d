# ADE20K as for DINOv3: the short side to 512 whatever the long side, otherwise as ade20k.py.
_base_ = './ade20k.py'

train_pipeline = _base_.train_pipeline
train_pipeline[2] = dict(type='RandomResize', scale=(99999999, 512), ratio_range=(0.5, 2.0), keep_ratio=True)
test_pipeline = _base_.test_pipeline
test_pipeline[1] = dict(type='Resize', scale=(99999999, 512), keep_ratio=True)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
