# Seg-L/16 on Cityscapes, the paper's recipe: 80k iterations, batch 8.
# Published mIoU, single-scale / multi-scale + flip: paper - / 80.7.
# tools/dist_train.sh configs/segmenter/segmenter_vit-l_linear_8xb1-80k_cityscapes.py 8
# The number is as quoted from table 8 of the paper in issue 41 of the official repository.
_base_ = [
    '../_base_/models/segmenter_vit-b16_linear.py',
    '../_base_/datasets/cityscapes.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/segmenter_80k.py',
]

checkpoint = (
    'augreg://L_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1--imagenet2012-steps_20k-lr_0.01-res_384'
)
model = dict(
    data_preprocessor=dict(size=(768, 768)),
    backbone=dict(
        img_size=(768, 768),
        embed_dims=1024,
        num_layers=24,
        num_heads=16,
        init_cfg=dict(checkpoint=checkpoint),
    ),
    decode_head=dict(in_channels=1024, num_classes=19),
    test_cfg=dict(crop_size=(768, 768), stride=(736, 736)),
)
train_dataloader = dict(batch_size=1)
# ten times that of the other datasets
optim_wrapper = dict(optimizer=dict(lr=1e-2))
