# Seg-S-Mask/16 on ADE20K, the paper's recipe: 160k iterations, batch 8.
# Published mIoU, single-scale / multi-scale + flip: official 45.3 / 46.9, mmseg 46.19 / 47.85.
# tools/dist_train.sh configs/segmenter/segmenter_vit-s_mask_8xb1-160k_ade20k.py 8
# Cost: 2.03 GB per GPU in training (mmseg), 34.8 images/s at 512x512 (official).
_base_ = './segmenter_vit-s_mask_8xb2-160k_ade20k.py'

train_dataloader = dict(batch_size=1)
