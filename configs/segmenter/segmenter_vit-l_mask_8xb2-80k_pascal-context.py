# Seg-L-Mask/16 on Pascal Context (60 classes), the paper's recipe: 80k iterations, batch 16.
# Published mIoU, single-scale / multi-scale + flip: official 58.1 / 59.0.
# tools/dist_train.sh configs/segmenter/segmenter_vit-l_mask_8xb2-80k_pascal-context.py 8
_base_ = ['../_base_/models/segmenter_vit-l16_mask.py', '../_base_/recipes/segmenter_pascal_context.py']

model = _base_.pop('model_settings')
