# Seg-L-Mask/16 on ADE20K, 160k iterations, batch 16 on 8 GPUs.
# Published mIoU, single-scale / multi-scale + flip: official 51.8 / 53.6, mmseg 52.16 / 53.65.
# tools/dist_train.sh configs/segmenter/segmenter_vit-l_mask_8xb2-160k_ade20k-640x640.py 8
# Deviation from the paper: batch 16 at its lr0 of 1e-3; segmenter_vit-l_mask_8xb1-160k_ade20k-640x640.py has batch 8.
_base_ = ['../_base_/models/segmenter_vit-l16_mask.py', '../_base_/recipes/segmenter_ade20k_640x640.py']

model = _base_.pop('model_settings')
