# A linear layer on the frozen ViT-L/16 of DINOv3 on ADE20K, the published recipe: 40k iterations, batch 16.
# Published mIoU, single-scale / multi-scale + flip: official 54.9 / -.
# tools/dist_train.sh configs/segmenter/segmenter_dinov3-l_linear_8xb2-40k_ade20k.py 8
# "official" is MODEL_CARD.md of github.com/facebookresearch/dinov3. The weights are gated: see docs/checkpoints.md.
_base_ = './segmenter_dinov3-b_linear_8xb2-40k_ade20k.py'

model = dict(
    backbone=dict(embed_dims=1024, num_layers=24, num_heads=16, init_cfg=dict(checkpoint='dinov3://vitl16')),
    decode_head=dict(in_channels=1024),
)
