# Segmenter with ViT-S/16 and the Mask Transformer, with the settings of the official code.
_base_ = './segmenter_vit-b16_mask.py'

checkpoint = (
    'augreg://S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03-res_384'
)
model = dict(
    backbone=dict(embed_dims=384, num_heads=6, init_cfg=dict(checkpoint=checkpoint)),
    decode_head=dict(in_channels=384, embed_dims=384, num_heads=6),
)
