# Seg-L-Mask/16 with a DeiT-III on ADE20K, Segmenter's recipe: 160k iterations, batch 8.
# Not a published experiment.
# tools/dist_train.sh configs/segmenter/segmenter_deit3-l_mask_8xb1-160k_ade20k-640x640.py 8
# Only the pretraining (arXiv 2204.07118, ImageNet-21k, then ImageNet-1k at 384) differs from
# segmenter_vit-l_mask_8xb1-160k_ade20k-640x640.py; like AugReg's it is supervised, so the recipe is kept.
_base_ = './segmenter_vit-l_mask_8xb1-160k_ade20k-640x640.py'

model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(
        norm_cfg=dict(eps=1e-6),
        layer_scale=1e-6,
        cls_pos_embed=False,
        init_cfg=dict(checkpoint='hf://timm/deit3_large_patch16_384.fb_in22k_ft_in1k'),
    ),
)
