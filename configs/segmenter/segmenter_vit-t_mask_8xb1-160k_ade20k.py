# Seg-T-Mask/16 on ADE20K, the paper's recipe: 160k iterations, batch 8.
# Published mIoU, single-scale / multi-scale + flip: official 38.1 / 38.8, mmseg 39.99 / 40.83.
# tools/dist_train.sh configs/segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k.py 8
# Cost: 1.21 GB per GPU in training (mmseg), 52.4 images/s at 512x512 (official).
_base_ = './segmenter_vit-t_mask_8xb2-160k_ade20k.py'

train_dataloader = dict(batch_size=1)
