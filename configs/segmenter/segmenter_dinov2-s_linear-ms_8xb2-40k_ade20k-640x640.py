# A linear layer on the last four blocks of the frozen ViT-S/14 of DINOv2 on ADE20K, the paper's "+ms": crop 640.
# Published mIoU, single-scale / multi-scale + flip: paper - / 47.2.
# tools/dist_train.sh configs/segmenter/segmenter_dinov2-s_linear-ms_8xb2-40k_ade20k-640x640.py 8
# "paper" is table 10 of DINOv2 (arXiv 2304.07193). Test with --tta.
_base_ = './segmenter_dinov2-b_linear-ms_8xb2-40k_ade20k-640x640.py'

model = dict(
    backbone=dict(embed_dims=384, num_heads=6, init_cfg=dict(checkpoint='dinov2://vits14')),
    decode_head=dict(in_channels=[384] * 4),
)
