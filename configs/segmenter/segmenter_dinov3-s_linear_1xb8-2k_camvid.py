# Segmenter with DINOv3's ViT-S/16 and the linear decoder on CamVid from scratch, 2,000 iterations of 8 crops of 224.
# Not a published experiment.
# tools/train.py configs/segmenter/segmenter_dinov3-s_linear_1xb8-2k_camvid.py
# Only the architecture differs from segmenter_vit-s_linear_1xb8-2k_camvid.py; see the config with the Mask Transformer.
_base_ = './segmenter_vit-s_linear_1xb8-2k_camvid.py'

model = dict(backbone=dict(layer_scale=0.1, num_registers=4, rope=dict(base=100, rescale=2)))
