# SETR-PUP with ViT-L/16 on Cityscapes, 80k iterations, batch 8 on 8 GPUs.
# Published mIoU, single-scale / multi-scale + flip: official 79.34 / -, mmseg 79.21 / 81.02.
# tools/dist_train.sh configs/setr/setr_vit-l_pup_8xb1-80k_cityscapes.py 8
# Cost: 27.96 GB per GPU in training, 0.37 images/s (mmseg, V100).
# As in mmseg the auxiliary heads have two convolutions; SETR has one.
_base_ = [
    '../_base_/models/setr_vit-l16_pup.py',
    '../_base_/datasets/cityscapes_setr.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/setr_80k.py',
]

model = dict(
    data_preprocessor=dict(size=(768, 768)),
    auxiliary_head=[dict(head, num_convs=2) for head in _base_.model.auxiliary_head],
    test_cfg=dict(crop_size=(768, 768), stride=(512, 512)),
)
train_dataloader = dict(batch_size=1)
