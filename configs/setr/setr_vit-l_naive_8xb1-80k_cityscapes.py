# SETR-Naive with ViT-L/16 on Cityscapes, 80k iterations, batch 8 on 8 GPUs.
# Published mIoU, single-scale / multi-scale + flip: official 77.90 / -, mmseg 78.10 / 80.22.
# tools/dist_train.sh configs/setr/setr_vit-l_naive_8xb1-80k_cityscapes.py 8
# Cost: 24.06 GB per GPU in training, 0.39 images/s (mmseg, V100).
_base_ = ['../_base_/models/setr_vit-l16_naive.py', '../_base_/recipes/setr_cityscapes.py']

model = _base_.pop('model_settings')
