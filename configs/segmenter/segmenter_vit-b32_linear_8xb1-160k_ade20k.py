# Seg-B/32 on ADE20K, the paper's recipe: 160k iterations, batch 8.
# Neither the official README nor the mmseg zoo has a number for this one.
# tools/dist_train.sh configs/segmenter/segmenter_vit-b32_linear_8xb1-160k_ade20k.py 8
# timm, and therefore the official code, uses this checkpoint for this size.
_base_ = './segmenter_vit-b_linear_8xb1-160k_ade20k.py'

checkpoint = 'augreg://B_32-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03-res_384'
model = dict(
    backbone=dict(patch_size=32, init_cfg=dict(checkpoint=checkpoint)),
    test_cfg=dict(size_divisor=32),
)
