# Seg-L-Mask/16 on Pascal Context (60 classes), the paper's recipe: 80k iterations, batch 16.
# Published mIoU, single-scale / multi-scale + flip: official 58.1 / 59.0.
# tools/dist_train.sh configs/segmenter/segmenter_vit-l_mask_8xb2-80k_pascal-context.py 8
_base_ = [
    '../_base_/models/segmenter_vit-b16_mask.py',
    '../_base_/datasets/pascal_context.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/segmenter_80k.py',
]

checkpoint = (
    'augreg://L_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1--imagenet2012-steps_20k-lr_0.01-res_384'
)
model = dict(
    data_preprocessor=dict(size=(480, 480)),
    backbone=dict(
        img_size=(480, 480),
        embed_dims=1024,
        num_layers=24,
        num_heads=16,
        init_cfg=dict(checkpoint=checkpoint),
    ),
    decode_head=dict(in_channels=1024, embed_dims=1024, num_heads=16, num_classes=60),
    test_cfg=dict(crop_size=(480, 480), stride=(448, 448)),
)
train_dataloader = dict(batch_size=2)
