# Segmenter with DINOv3's ViT-S/16 and the Mask Transformer on CamVid from scratch, 2,000 iterations of 8 crops of 224.
# Not a published experiment.
# tools/train.py configs/segmenter/segmenter_dinov3-s_mask_1xb8-2k_camvid.py
# Only the architecture differs from segmenter_vit-s_mask_1xb8-2k_camvid.py. LayerScale starts at 0.1, as in CaiT
# (arXiv 2103.17239) for 12 blocks: DINOv3's 1e-5 is for pretraining over a million iterations.
_base_ = './segmenter_vit-s_mask_1xb8-2k_camvid.py'

model = dict(backbone=dict(layer_scale=0.1, num_registers=4, rope=dict(base=100, rescale=2)))
