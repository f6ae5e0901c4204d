# The paper's schedule: SGD with Nesterov momentum, no weight decay, lr = (lr0 - 1e-5) (1 - i/N)^0.9 + 1e-5 per
# iteration, no warm-up. Loops and hooks are mmseg's.
_base_ = 'mmseg::_base_/schedules/schedule_160k.py'

optimizer = dict(type='SGD', lr=1e-3, momentum=0.9, nesterov=True, weight_decay=0.0)
optim_wrapper = dict(type='OptimWrapper', optimizer=optimizer, clip_grad=None)
# end = N + 1: mmengine's PolyLR divides by end - begin - 1, so end = N would reach 1e-5 one iteration early.
param_scheduler = [dict(type='PolyLR', eta_min=1e-5, power=0.9, begin=0, end=160001, by_epoch=False)]
default_hooks = dict(
    checkpoint=dict(type='SegmenterCheckpointHook'),
    visualization=dict(type='SegmenterVisualizationHook'),
)
