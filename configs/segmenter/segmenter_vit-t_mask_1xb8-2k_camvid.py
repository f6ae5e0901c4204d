# Seg-T-Mask/16 on CamVid from scratch, 2,000 iterations of 8 crops of 224: small enough for a CPU.
# Not a published experiment.
# tools/train.py configs/segmenter/segmenter_vit-t_mask_1xb8-2k_camvid.py
# From random weights AdamW with a warm-up learns where the paper's SGD, made for pretrained ones, hardly moves.
_base_ = [
    '../_base_/models/segmenter_vit-b16_mask.py',
    '../_base_/datasets/camvid.py',
    '../_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=(224, 224)),
    backbone=dict(img_size=(224, 224), embed_dims=192, num_heads=3, init_cfg=None),
    decode_head=dict(in_channels=192, embed_dims=192, num_heads=3, num_classes=11),
    test_cfg=dict(_delete_=True, mode='slide', crop_size=(224, 224), stride=(192, 192), size_divisor=16),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=3e-4, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=100, by_epoch=False),
    dict(type='PolyLR', eta_min=1e-5, power=0.9, begin=100, end=2000, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2000, val_interval=500)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=500),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
randomness = dict(seed=0)
