# The Mask Transformer and the ViT-B/14 of DINOv2, both trained on ADE20K, 40k iterations, batch 16 on 8 GPUs.
# Not a published experiment.
# tools/dist_train.sh configs/segmenter/segmenter_dinov2-b_mask_8xb2-40k_ade20k.py 8
# EoMT trains DINOv2 this way: 1e-4 and a layer decay of 0.8.
# Stochastic depth of 0.1 is Segmenter's. Everything else is as in segmenter_dinov2-b_mask-frozen_8xb2-40k_ade20k.py.
_base_ = './segmenter_dinov2-b_mask-frozen_8xb2-40k_ade20k.py'

model = dict(backbone=dict(frozen_exclude=['all'], drop_path_rate=0.1))
optim_wrapper = dict(
    optimizer=dict(lr=1e-4),
    constructor='ViTLayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.8),
)
