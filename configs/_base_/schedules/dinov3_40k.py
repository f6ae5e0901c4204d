# DINOv3's schedule for linear heads: AdamW, and a cosine after 1,500 iterations of warm-up.
_base_ = './dinov2_40k.py'

optim_wrapper = dict(optimizer=dict(weight_decay=1e-3))
param_scheduler = [
    dict(type='WarmupOneCycleLR', total_steps=40000, warmup_iters=1500, warmup_ratio=1e-6, by_epoch=False)
]
