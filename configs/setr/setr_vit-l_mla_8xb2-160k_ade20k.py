# SETR-MLA with ViT-L/16 on ADE20K, 160k iterations, batch 16 on 8 GPUs.
# Published mIoU, single-scale / multi-scale + flip: official 48.64 / 50.28, mmseg 47.39 / 49.37.
# tools/dist_train.sh configs/setr/setr_vit-l_mla_8xb2-160k_ade20k.py 8
# Cost: 17.30 GB per GPU in training, 5.25 images/s (mmseg, V100).
_base_ = [
    '../_base_/models/setr_vit-l16_mla.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/setr_160k.py',
]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(img_size=(512, 512)),
    decode_head=dict(num_classes=150),
    auxiliary_head=[dict(head, num_classes=150) for head in _base_.model.auxiliary_head],
    test_cfg=dict(crop_size=(512, 512), stride=(341, 341)),
)
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
