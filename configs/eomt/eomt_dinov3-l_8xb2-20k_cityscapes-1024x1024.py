# EoMT with DINOv3's ViT-L/16 on Cityscapes at crop 1024, 107 epochs, batch 16. Not a published experiment.
# tools/dist_train.sh configs/eomt/eomt_dinov3-l_8xb2-20k_cityscapes-1024x1024.py 8 --amp
# Learning rate, warm-ups and the pattern of the annealing are those of eomt_dinov3-l_8xb2-20k_ade20k.py, everything
# else of eomt_dinov2-l_8xb2-20k_cityscapes-1024x1024.py.
_base_ = [
    '../_base_/models/eomt_dinov3-l16.py',
    '../_base_/datasets/cityscapes_eomt.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/eomt.py',
]

model = dict(
    data_preprocessor=dict(size=(1024, 1024)),
    backbone=dict(img_size=(1024, 1024)),
    decode_head=dict(num_classes=19),
    test_cfg=dict(crop_size=(1024, 1024), stride=(1024, 1024)),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(decay_rate=1.0))
param_scheduler = [dict(type='TwoStageWarmupPolyLR', total_steps=19795, warmup_iters=(2000, 3000), by_epoch=False)]
train_cfg = dict(max_iters=19795)
custom_hooks = [dict(type='MaskAnnealingHook', start=[0, 6634, 9951, 13268], end=[3000, 9951, 13268, 16585])]
