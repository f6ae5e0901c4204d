# SETR's schedule over 160k iterations: mmseg's SGD and PolyLR without weight decay, and ten times the learning rate in
# the heads.
_base_ = 'mmseg::_base_/schedules/schedule_160k.py'

optim_wrapper = dict(
    optimizer=dict(lr=1e-2, weight_decay=0.0),
    paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=10.0))),
)
default_hooks = dict(
    checkpoint=dict(type='SegmenterCheckpointHook'),
    visualization=dict(type='SegmenterVisualizationHook'),
)
