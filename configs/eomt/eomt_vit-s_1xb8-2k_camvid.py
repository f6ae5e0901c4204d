# EoMT with ViT-S/16 on CamVid from scratch, 2,000 iterations of 8 crops of 224. Not a published experiment.
# tools/train.py configs/eomt/eomt_vit-s_1xb8-2k_camvid.py
# Data, crop, AdamW, learning rates, windows and the ViT are those of segmenter_vit-s_mask_1xb8-2k_camvid.py. EoMT's are
# - queries in the last three blocks, as in its ViT-S for COCO,
# - the loss; masks have 56x56 logits and are compared at as many points, 3136,
# - gradients clipped at a norm of 0.01,
# - masked attention annealed in the same parts of the training as there: 2/12 to 4/12, 5/12 to 7/12 and 8/12 to 10/12.
# EoMT's warm-up of the head alone is left out: it protects pretrained weights.
_base_ = '../segmenter/segmenter_vit-s_mask_1xb8-2k_camvid.py'

model = dict(
    type='EoMT',
    decode_head=dict(
        _delete_=True,
        type='EoMTHead',
        in_channels=384,
        num_queries=100,
        num_blocks=3,
        num_classes=11,
        loss_decode=dict(type='MaskClassificationLoss', num_points=3136),
    ),
)
optim_wrapper = dict(clip_grad=dict(max_norm=0.01))
custom_hooks = [dict(type='MaskAnnealingHook', start=[333, 833, 1333], end=[667, 1167, 1667])]
