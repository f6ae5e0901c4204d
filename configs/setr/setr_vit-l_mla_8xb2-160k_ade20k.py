# SETR-MLA with ViT-L/16 on ADE20K, 160k iterations, batch 16 on 8 GPUs.
# Published mIoU, single-scale / multi-scale + flip: official 48.64 / 50.28, mmseg 47.39 / 49.37.
# tools/dist_train.sh configs/setr/setr_vit-l_mla_8xb2-160k_ade20k.py 8
# Cost: 17.30 GB per GPU in training, 5.25 images/s (mmseg, V100).
_base_ = ['../_base_/models/setr_vit-l16_mla.py', '../_base_/recipes/setr_ade20k.py']

model = _base_.pop('model_settings')
model.auxiliary_head = [dict(head, num_classes=150) for head in _base_.model.auxiliary_head]
optim_wrapper = dict(optimizer=dict(lr=1e-3))
