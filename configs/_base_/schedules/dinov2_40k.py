# DINOv2's schedule for linear heads: AdamW, lr = 1e-3 (1 - i/40000), times 1e-6 + (1 - 1e-6) i/1500 in the first 1,500
# iterations. Loops and hooks are mmseg's.
_base_ = 'mmseg::_base_/schedules/schedule_40k.py'

optimizer = dict(_delete_=True, type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-4)
optim_wrapper = dict(type='OptimWrapper', optimizer=optimizer, clip_grad=None)
# One more than mmcv 1's numbers: mmengine's schedulers divide by end - begin - 1. The rates multiply.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=1501, by_epoch=False),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=0, end=40001, by_epoch=False),
]
default_hooks = dict(
    checkpoint=dict(type='SegmenterCheckpointHook'),
    visualization=dict(type='SegmenterVisualizationHook'),
)
