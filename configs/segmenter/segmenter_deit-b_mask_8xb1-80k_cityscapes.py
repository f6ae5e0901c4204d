# Seg-B-Mask/16 with a distilled DeiT on Cityscapes, the paper's recipe: 80k iterations, batch 8.
# Neither the official README nor the mmseg zoo has a number for this one.
# tools/dist_train.sh configs/segmenter/segmenter_deit-b_mask_8xb1-80k_cityscapes.py 8
# Start from https://dl.fbaipublicfiles.com/deit/deit_base_distilled_patch16_384-d0272ac0.pth:
# tools/model_converters/timm2mmseg.py deit_base_distilled_patch16_384-d0272ac0.pth \
#     pretrain/deit_base_distilled_patch16_384.pth
_base_ = './segmenter_vit-b_mask_8xb1-80k_cityscapes.py'

model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(
        with_dist_token=True,
        init_cfg=dict(checkpoint='pretrain/deit_base_distilled_patch16_384.pth'),
    ),
)
