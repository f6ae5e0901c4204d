# EoMT's AdamW: 1e-4 with a layer decay of 0.8 from the last block to the first and the embeddings, weight decay of
# 0.05 on all parameters, gradients clipped at a norm of 0.01. A config adds iterations, schedule and annealing. Loops
# and hooks are mmseg's.
_base_ = 'mmseg::_base_/schedules/schedule_40k.py'

optimizer = dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.05)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=optimizer,
    clip_grad=dict(_delete_=True, max_norm=0.01),
    constructor='ViTLayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.8, blocks_only=True),
)
default_hooks = dict(
    checkpoint=dict(type='SegmenterCheckpointHook'),
    visualization=dict(type='SegmenterVisualizationHook'),
)
