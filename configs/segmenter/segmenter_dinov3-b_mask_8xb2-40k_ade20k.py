# The Mask Transformer and the ViT-B/16 of DINOv3, both trained on ADE20K, 40k iterations, batch 16 on 8 GPUs.
# Not a published experiment.
# tools/dist_train.sh configs/segmenter/segmenter_dinov3-b_mask_8xb2-40k_ade20k.py 8
# EoMT's rate for DINOv3 is 2e-4 without layer decay; the decay of 0.8 is what it uses for DINOv2.
# Stochastic depth of 0.1 is Segmenter's. Everything else is as in segmenter_dinov3-b_mask-frozen_8xb2-40k_ade20k.py.
_base_ = './segmenter_dinov3-b_mask-frozen_8xb2-40k_ade20k.py'

model = dict(backbone=dict(frozen_exclude=['all'], drop_path_rate=0.1))
optim_wrapper = dict(
    optimizer=dict(lr=2e-4),
    constructor='ViTLayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.8),
)
