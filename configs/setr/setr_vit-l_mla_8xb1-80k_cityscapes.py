# SETR-MLA with ViT-L/16 on Cityscapes, 80k iterations, batch 8 on 8 GPUs.
# Published mIoU, single-scale / multi-scale + flip: official 77.24 / -, mmseg 77.00 / 79.59.
# tools/dist_train.sh configs/setr/setr_vit-l_mla_8xb1-80k_cityscapes.py 8
# Cost: 24.10 GB per GPU in training, 0.41 images/s (mmseg, V100).
_base_ = ['../_base_/models/setr_vit-l16_mla.py', '../_base_/recipes/setr_cityscapes.py']

model = _base_.pop('model_settings')
optim_wrapper = dict(optimizer=dict(lr=2e-3))
