# Seg-B-Mask/16 on Cityscapes, the paper's recipe: 80k iterations, batch 8.
# Neither the official README nor the mmseg zoo has a number for this one.
# tools/dist_train.sh configs/segmenter/segmenter_vit-b_mask_8xb1-80k_cityscapes.py 8
_base_ = ['../_base_/models/segmenter_vit-b16_mask.py', '../_base_/recipes/segmenter_cityscapes.py']

model = _base_.pop('model_settings')
