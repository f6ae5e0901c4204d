# Segmenter on Pascal Context (60 classes) at crop 480, 2 images per GPU.
_base_ = ['../datasets/pascal_context.py', '../default_runtime.py', '../schedules/segmenter_80k.py']

# Crop, classes and windows. A config adds them to its model: model = _base_.pop('model_settings')
model_settings = dict(
    data_preprocessor=dict(size=(480, 480)),
    backbone=dict(img_size=(480, 480)),
    decode_head=dict(num_classes=60),
    test_cfg=dict(crop_size=(480, 480), stride=(448, 448)),
)
train_dataloader = dict(batch_size=2)
