# Seg-L-Mask/16 on Cityscapes, the paper's recipe: 80k iterations, batch 8.
# Published mIoU, single-scale / multi-scale + flip: official 79.1 / 81.3.
# tools/dist_train.sh configs/segmenter/segmenter_vit-l_mask_8xb1-80k_cityscapes.py 8
# The released model appears to have one decoder layer: it has 322 M parameters, and the two layers of the official
# config make 334 M. Build it with --cfg-options model.decode_head.num_layers=1.
_base_ = ['../_base_/models/segmenter_vit-l16_mask.py', '../_base_/recipes/segmenter_cityscapes.py']

model = _base_.pop('model_settings')
