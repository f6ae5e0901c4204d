# Seg-T-Mask/8 on ADE20K, the paper's recipe: 160k iterations, batch 8.
# Neither the official README nor the mmseg zoo has a number for this one.
# tools/dist_train.sh configs/segmenter/segmenter_vit-t8_mask_8xb1-160k_ade20k.py 8
# Neither AugReg nor the official code has a Ti/8. This model starts from Ti/16 with a resized patch embedding:
# tools/model_converters/vitjax2mmseg.py --patch-size 8 \
#     Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03-res_384.npz \
#     pretrain/vit_tiny_p8_384.pth
_base_ = './segmenter_vit-t_mask_8xb1-160k_ade20k.py'

model = dict(
    backbone=dict(patch_size=8, init_cfg=dict(checkpoint='pretrain/vit_tiny_p8_384.pth')),
    test_cfg=dict(size_divisor=8),
)
