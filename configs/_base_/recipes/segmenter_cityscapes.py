# Segmenter on Cityscapes at crop 768, 1 image per GPU.
_base_ = ['../datasets/cityscapes.py', '../default_runtime.py', '../schedules/segmenter_80k.py']

# Crop, classes and windows. A config adds them to its model: model = _base_.pop('model_settings')
model_settings = dict(
    data_preprocessor=dict(size=(768, 768)),
    backbone=dict(img_size=(768, 768)),
    decode_head=dict(num_classes=19),
    test_cfg=dict(crop_size=(768, 768), stride=(736, 736)),
)
train_dataloader = dict(batch_size=1)
# ten times that of the other datasets
optim_wrapper = dict(optimizer=dict(lr=1e-2))
