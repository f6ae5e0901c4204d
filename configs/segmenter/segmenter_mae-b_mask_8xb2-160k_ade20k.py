# Seg-B-Mask/16 with a ViT of MAE on ADE20K, 160k iterations, batch 16 on 8 GPUs.
# Not a published experiment.
# tools/dist_train.sh configs/segmenter/segmenter_mae-b_mask_8xb2-160k_ade20k.py 8
# MAE (arXiv 2111.06377) is fine-tuned with AdamW and layer decay: rate, weight decay, warm-up, layer decay and
# stochastic depth are those of mmseg's mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py. The head is Segmenter's.
_base_ = './segmenter_vit-b_mask_8xb2-160k_ade20k.py'

model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(
        norm_cfg=dict(eps=1e-6),
        init_cfg=dict(checkpoint='https://dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_base.pth'),
    ),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='ViTLayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.65),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=1501, by_epoch=False),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=0, end=160001, by_epoch=False),
]
