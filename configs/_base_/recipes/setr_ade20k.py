# SETR on ADE20K at crop 512, 2 images per GPU.
_base_ = ['../datasets/ade20k.py', '../default_runtime.py', '../schedules/setr_160k.py']

# Crop, classes and windows. A config adds them to its model: model = _base_.pop('model_settings')
model_settings = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(img_size=(512, 512)),
    decode_head=dict(num_classes=150),
    test_cfg=dict(crop_size=(512, 512), stride=(341, 341)),
)
train_dataloader = dict(batch_size=2)
