# Seg-B/16 on Cityscapes, the paper's recipe: 80k iterations, batch 8.
# Published mIoU, single-scale / multi-scale + flip: authors 77.46 / 79.60.
# tools/dist_train.sh configs/segmenter/segmenter_vit-b_linear_8xb1-80k_cityscapes.py 8
# "authors" is their answer in issue 25 of the official repository. The paper uses DeiT, which they found better.
_base_ = ['../_base_/models/segmenter_vit-b16_linear.py', '../_base_/recipes/segmenter_cityscapes.py']

model = _base_.pop('model_settings')
