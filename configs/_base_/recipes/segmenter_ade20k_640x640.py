# Segmenter on ADE20K at crop 640 (ViT-L), 2 images per GPU.
_base_ = ['../datasets/ade20k_640x640.py', '../default_runtime.py', '../schedules/segmenter_160k.py']

# Crop, classes and windows. A config adds them to its model: model = _base_.pop('model_settings')
model_settings = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(img_size=(640, 640)),
    test_cfg=dict(crop_size=(640, 640), stride=(608, 608)),
)
train_dataloader = dict(batch_size=2)
