# A linear layer on the last four blocks of the frozen ViT-B/14 of DINOv2 on ADE20K, the paper's "+ms": crop 640.
# Published mIoU, single-scale / multi-scale + flip: paper - / 51.3.
# tools/dist_train.sh configs/segmenter/segmenter_dinov2-b_linear-ms_8xb2-40k_ade20k-640x640.py 8
# "paper" is table 10 of DINOv2 (arXiv 2304.07193). Test with --tta.
_base_ = [
    '../_base_/models/segmenter_dinov2-b14_linear.py',
    '../_base_/datasets/ade20k_dinov2-ms.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/dinov2_40k.py',
]

model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(out_indices=(8, 9, 10, 11), norm_outputs=True),
    decode_head=dict(in_channels=[768] * 4, in_index=[0, 1, 2, 3], input_transform='resize_concat'),
    test_cfg=dict(crop_size=(640, 640), stride=(320, 320)),
)
train_dataloader = dict(batch_size=2)
