# Seg-B/8 on ADE20K, the paper's recipe: 160k iterations, batch 8.
# Published mIoU, single-scale / multi-scale + flip: official 49.5 / 50.5, paper - / 49.61.
# tools/dist_train.sh configs/segmenter/segmenter_vit-b8_linear_8xb1-160k_ade20k.py 8
# Cost: 4.2 images/s at 512x512 (official). model.backbone.with_cp=True trades speed for memory.
# AugReg has a B/8 at 224 pixels only. According to issue 43 of the official repository, its "vit_base_patch8_384" was
# made from that file.
_base_ = './segmenter_vit-b_linear_8xb1-160k_ade20k.py'

checkpoint = 'augreg://B_8-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.01-res_224'
model = dict(
    backbone=dict(patch_size=8, init_cfg=dict(checkpoint=checkpoint)),
    test_cfg=dict(size_divisor=8),
)
