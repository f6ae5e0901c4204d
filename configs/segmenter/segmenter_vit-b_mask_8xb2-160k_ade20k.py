# Seg-B-Mask/16 on ADE20K, 160k iterations, batch 16 on 8 GPUs.
# Published mIoU, single-scale / multi-scale + flip: official 48.5 / 50.0, mmseg 49.60 / 51.07.
# tools/dist_train.sh configs/segmenter/segmenter_vit-b_mask_8xb2-160k_ade20k.py 8
# Deviation from the paper: batch 16 at its lr0 of 1e-3; segmenter_vit-b_mask_8xb1-160k_ade20k.py has batch 8.
_base_ = ['../_base_/models/segmenter_vit-b16_mask.py', '../_base_/recipes/segmenter_ade20k.py']
