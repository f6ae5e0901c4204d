# Seg-B-Mask/16 on Pascal Context (60 classes), the paper's recipe: 80k iterations, batch 16.
# Neither the official README nor the mmseg zoo has a number for this one.
# tools/dist_train.sh configs/segmenter/segmenter_vit-b_mask_8xb2-80k_pascal-context.py 8
_base_ = ['../_base_/models/segmenter_vit-b16_mask.py', '../_base_/recipes/segmenter_pascal_context.py']

model = _base_.pop('model_settings')
