# Seg-L-Mask/16 on Cityscapes, the paper's recipe: 80k iterations, batch 8.
# Published mIoU, single-scale / multi-scale + flip: official 79.1 / 81.3.
# tools/dist_train.sh configs/segmenter/segmenter_vit-l_mask_8xb1-80k_cityscapes.py 8
# The released model seems to have one decoder layer (322 M parameters, 334 M with the two of the official config):
# --cfg-options model.decode_head.num_layers=1 makes it.
_base_ = [
    '../_base_/models/segmenter_vit-b16_mask.py',
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
    decode_head=dict(in_channels=1024, embed_dims=1024, num_heads=16, num_classes=19),
    test_cfg=dict(crop_size=(768, 768), stride=(736, 736)),
)
train_dataloader = dict(batch_size=1)
# ten times that of the other datasets
optim_wrapper = dict(optimizer=dict(lr=1e-2))
