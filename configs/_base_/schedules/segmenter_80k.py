# The paper's schedule over 80k iterations; Cityscapes uses ten times this learning rate. Loops and hooks
# are mmseg's.
_base_ = 'mmseg::_base_/schedules/schedule_80k.py'

optimizer = dict(type='SGD', lr=1e-3, momentum=0.9, nesterov=True, weight_decay=0.0)
optim_wrapper = dict(type='OptimWrapper', optimizer=optimizer, clip_grad=None)
# end = N + 1: see segmenter_160k.py
param_scheduler = [dict(type='PolyLR', eta_min=1e-5, power=0.9, begin=0, end=80001, by_epoch=False)]
default_hooks = dict(
    checkpoint=dict(type='SegmenterCheckpointHook'),
    visualization=dict(type='SegmenterVisualizationHook'),
)
