# Seg-L-Mask/16 on Cityscapes, the paper's recipe: 80k iterations, batch 8.
# Published mIoU, single-scale / multi-scale + flip: official 79.1 / 81.3.
# tools/dist_train.sh configs/segmenter/segmenter_vit-l_mask_8xb1-80k_cityscapes.py 8
# The released model seems to have one decoder layer (322 M parameters, 334 M with the two of the official config):
# --cfg-options model.decode_head.num_layers=1 makes it.
_base_ = [
    '../_base_/models/segmenter_vit-l16_mask.py',
    '../_base_/datasets/cityscapes.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/segmenter_80k.py',
]

model = dict(
    data_preprocessor=dict(size=(768, 768)),
    backbone=dict(img_size=(768, 768)),
    decode_head=dict(num_classes=19),
    test_cfg=dict(crop_size=(768, 768), stride=(736, 736)),
)
train_dataloader = dict(batch_size=1)
# ten times that of the other datasets
optim_wrapper = dict(optimizer=dict(lr=1e-2))
