# Seg-B-Mask/16 on ADE20K, the paper's recipe: 160k iterations, batch 8.
# Published mIoU, single-scale / multi-scale + flip: official 48.5 / 50.0, mmseg 49.60 / 51.07.
# tools/dist_train.sh configs/segmenter/segmenter_vit-b_mask_8xb1-160k_ade20k.py 8
# Cost: 4.20 GB per GPU in training (mmseg), 24.1 images/s at 512x512 (official).
_base_ = './segmenter_vit-b_mask_8xb2-160k_ade20k.py'

train_dataloader = dict(batch_size=1)
