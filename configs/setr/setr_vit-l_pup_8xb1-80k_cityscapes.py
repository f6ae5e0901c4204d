# SETR-PUP with ViT-L/16 on Cityscapes, 80k iterations, batch 8 on 8 GPUs.
# Published mIoU, single-scale / multi-scale + flip: official 79.34 / -, mmseg 79.21 / 81.02.
# tools/dist_train.sh configs/setr/setr_vit-l_pup_8xb1-80k_cityscapes.py 8
# Cost: 27.96 GB per GPU in training, 0.37 images/s (mmseg, V100).
# As in mmseg, the auxiliary heads have two convolutions; those of SETR have one.
_base_ = ['../_base_/models/setr_vit-l16_pup.py', '../_base_/recipes/setr_cityscapes.py']

model = _base_.pop('model_settings')
model.auxiliary_head = [dict(head, num_convs=2) for head in _base_.model.auxiliary_head]
