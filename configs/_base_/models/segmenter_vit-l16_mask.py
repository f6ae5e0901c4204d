# Segmenter with ViT-L/16 and the Mask Transformer, with the settings of the official code.
_base_ = './segmenter_vit-b16_mask.py'

checkpoint = (
    'augreg://L_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1--imagenet2012-steps_20k-lr_0.01-res_384'
)
model = dict(
    backbone=dict(embed_dims=1024, num_layers=24, num_heads=16, init_cfg=dict(checkpoint=checkpoint)),
    decode_head=dict(in_channels=1024, embed_dims=1024, num_heads=16),
)
