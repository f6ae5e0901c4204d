# Seg-S-Mask/16 on CamVid from scratch, 2,000 iterations of 8 crops of 224. Not a published experiment.
# tools/train.py configs/segmenter/segmenter_vit-s_mask_1xb8-2k_camvid.py
_base_ = './segmenter_vit-t_mask_1xb8-2k_camvid.py'

model = dict(
    backbone=dict(embed_dims=384, num_heads=6),
    decode_head=dict(in_channels=384, embed_dims=384, num_heads=6),
)
