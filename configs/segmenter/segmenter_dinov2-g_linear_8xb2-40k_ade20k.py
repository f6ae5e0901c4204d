# A linear layer on the frozen ViT-g/14 of DINOv2 on ADE20K, the published recipe: 40k iterations, batch 16.
# Published mIoU, single-scale / multi-scale + flip: paper 49.0 / -.
# tools/dist_train.sh configs/segmenter/segmenter_dinov2-g_linear_8xb2-40k_ade20k.py 8
# "paper" is table 10 of DINOv2 (arXiv 2304.07193).
_base_ = './segmenter_dinov2-b_linear_8xb2-40k_ade20k.py'

model = dict(
    backbone=dict(
        embed_dims=1536,
        num_layers=40,
        num_heads=24,
        ffn='swiglu',
        feedforward_channels=4096,
        init_cfg=dict(checkpoint='dinov2://vitg14'),
    ),
    decode_head=dict(in_channels=1536),
)
