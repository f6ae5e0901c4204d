# SETR-PUP with ViT-L/16 on Pascal Context (60 classes), 80k iterations, batch 16 on 8 GPUs.
# Published mIoU, single-scale / multi-scale + flip: official 54.37 / 55.27, paper 54.40 / 55.27.
# tools/dist_train.sh configs/setr/setr_vit-l_pup_8xb2-80k_pascal-context.py 8
# mmseg has no config for this one. The heads are those of mmseg's base; the learning rate and windows are SETR's.
_base_ = ['../_base_/models/setr_vit-l16_pup.py', '../_base_/recipes/setr_pascal_context.py']

model = _base_.pop('model_settings')
model.auxiliary_head = [dict(head, num_classes=60) for head in _base_.model.auxiliary_head]
optim_wrapper = dict(optimizer=dict(lr=1e-3))
