# SETR-PUP with ViT-L/16 on Pascal Context (60 classes), 80k iterations, batch 16 on 8 GPUs.
# Published mIoU, single-scale / multi-scale + flip: official 54.37 / 55.27, paper 54.40 / 55.27.
# tools/dist_train.sh configs/setr/setr_vit-l_pup_8xb2-80k_pascal-context.py 8
# mmseg has no config for it: the heads are its base's, learning rate and windows of SETR.
_base_ = [
    '../_base_/models/setr_vit-l16_pup.py',
    '../_base_/datasets/pascal_context_setr.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/setr_80k.py',
]

model = dict(
    data_preprocessor=dict(size=(480, 480)),
    backbone=dict(img_size=(480, 480)),
    decode_head=dict(num_classes=60),
    auxiliary_head=[dict(head, num_classes=60) for head in _base_.model.auxiliary_head],
    test_cfg=dict(crop_size=(480, 480), stride=(320, 320)),
)
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
