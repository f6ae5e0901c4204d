# Seg-T-Mask/16 on ADE20K, 160k iterations, batch 16 on 8 GPUs.
# Published mIoU, single-scale / multi-scale + flip: official 38.1 / 38.8, mmseg 39.99 / 40.83.
# tools/dist_train.sh configs/segmenter/segmenter_vit-t_mask_8xb2-160k_ade20k.py 8
# Deviation from the paper: batch 16 at its lr0 of 1e-3; segmenter_vit-t_mask_8xb1-160k_ade20k.py has batch 8.
_base_ = ['../_base_/models/segmenter_vit-t16_mask.py', '../_base_/recipes/segmenter_ade20k.py']
