# AdamW for the Mask Transformer on foundation models: 40,000 iterations, with batch 16 32 epochs of ADE20K, as EoMT
# (arXiv 2503.19108) trains on DINOv2. Of its recipe are the weight decay of 0.05, the polynomial of power 0.9 and the
# 1,500 iterations of warm-up. A config sets the learning rate.
_base_ = './dinov2_40k.py'

optim_wrapper = dict(
    optimizer=dict(lr=2e-4, weight_decay=0.05),
    # no decay of norms, biases, layer scales, tokens and position embeddings
    paramwise_cfg=dict(
        flat_decay_mult=0.0,
        custom_keys={name: dict(decay_mult=0.0) for name in ('cls_token', 'register_tokens', 'pos_embed', 'cls_emb')},
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=1501, by_epoch=False),
    # eta_min=0: a higher one would speed up layers that start below it
    dict(type='PolyLR', eta_min=0.0, power=0.9, begin=0, end=40001, by_epoch=False),
]
