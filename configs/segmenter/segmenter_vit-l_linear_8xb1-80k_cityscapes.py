# Seg-L/16 on Cityscapes, the paper's recipe: 80k iterations, batch 8.
# Published mIoU, single-scale / multi-scale + flip: paper - / 80.7.
# tools/dist_train.sh configs/segmenter/segmenter_vit-l_linear_8xb1-80k_cityscapes.py 8
# The number is as quoted from table 8 of the paper in issue 41 of the official repository.
_base_ = [
    '../_base_/models/segmenter_vit-l16_linear.py',
    '../_base_/datasets/cityscapes.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/segmenter_80k.py',
]

model = dict(
    data_preprocessor=dict(size=(768, 768)),
    backbone=dict(img_size=(768, 768)),
    decode_head=dict(num_classes=19),
    test_cfg=dict(crop_size=(768, 768), stride=(736, 736)),
)
train_dataloader = dict(batch_size=1)
# ten times that of the other datasets
optim_wrapper = dict(optimizer=dict(lr=1e-2))
