# Seg-B-Mask/16 with a distilled DeiT on ADE20K, the paper's recipe: 160k iterations, batch 8.
# Published mIoU, single-scale / multi-scale + flip: official 48.7 / 50.1, paper 48.70 / 50.08.
# tools/dist_train.sh configs/segmenter/segmenter_deit-b_mask_8xb1-160k_ade20k.py 8
# Cost: 24.1 images/s at 512x512 (official).
# Start from https://dl.fbaipublicfiles.com/deit/deit_base_distilled_patch16_384-d0272ac0.pth:
# tools/model_converters/timm2mmseg.py deit_base_distilled_patch16_384-d0272ac0.pth \
#     pretrain/deit_base_distilled_patch16_384.pth
_base_ = './segmenter_vit-b_mask_8xb1-160k_ade20k.py'

model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(
        with_dist_token=True,
        init_cfg=dict(checkpoint='pretrain/deit_base_distilled_patch16_384.pth'),
    ),
)
