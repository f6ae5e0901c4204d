# Seg-L/16 on Cityscapes, the paper's recipe: 80k iterations, batch 8.
# Published mIoU, single-scale / multi-scale + flip: paper - / 80.7.
# tools/dist_train.sh configs/segmenter/segmenter_vit-l_linear_8xb1-80k_cityscapes.py 8
# Issue 41 of the official repository quotes this number from Table 8 of the paper.
_base_ = ['../_base_/models/segmenter_vit-l16_linear.py', '../_base_/recipes/segmenter_cityscapes.py']

model = _base_.pop('model_settings')
