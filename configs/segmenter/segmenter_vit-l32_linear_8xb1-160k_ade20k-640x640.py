# Seg-L/32 on ADE20K, the paper's recipe: 160k iterations, batch 8.
# Neither the official README nor the mmseg zoo has a number for this one.
# tools/dist_train.sh configs/segmenter/segmenter_vit-l32_linear_8xb1-160k_ade20k-640x640.py 8
# AugReg has no L/32. The official code uses timm's jx_vit_large_p32_384-9b920ba8.pth, the original ViT
# (github.com/huggingface/pytorch-image-models, release v0.1-vitjx):
# tools/model_converters/timm2mmseg.py jx_vit_large_p32_384-9b920ba8.pth pretrain/vit_large_p32_384.pth
_base_ = './segmenter_vit-l_linear_8xb1-160k_ade20k-640x640.py'

model = dict(
    backbone=dict(patch_size=32, init_cfg=dict(checkpoint='pretrain/vit_large_p32_384.pth')),
    test_cfg=dict(size_divisor=32),
)
