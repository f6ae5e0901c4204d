# Seg-T-Mask/16 on CamVid from scratch, 2,000 iterations of 8 crops of 224: small enough for a CPU.
# Not a published experiment.
# tools/train.py configs/segmenter/segmenter_vit-t_mask_1xb8-2k_camvid.py
_base_ = [
    '../_base_/models/segmenter_vit-t16_mask.py',
    '../_base_/datasets/camvid.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/scratch_2k.py',
]

model = dict(
    data_preprocessor=dict(size=(224, 224)),
    backbone=dict(img_size=(224, 224), init_cfg=None),
    decode_head=dict(num_classes=11),
    test_cfg=dict(_delete_=True, mode='slide', crop_size=(224, 224), stride=(192, 192), size_divisor=16),
)
