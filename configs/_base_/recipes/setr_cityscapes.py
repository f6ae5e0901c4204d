# SETR on Cityscapes at crop 768, 1 image per GPU.
_base_ = ['../datasets/cityscapes_setr.py', '../default_runtime.py', '../schedules/setr_80k.py']

# Crop, classes and windows. A config adds them to its model: model = _base_.pop('model_settings')
model_settings = dict(
    data_preprocessor=dict(size=(768, 768)),
    test_cfg=dict(crop_size=(768, 768), stride=(512, 512)),
)
train_dataloader = dict(batch_size=1)
