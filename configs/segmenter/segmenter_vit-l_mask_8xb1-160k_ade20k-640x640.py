# Seg-L-Mask/16 on ADE20K, the paper's recipe: 160k iterations, batch 8.
# Published mIoU, single-scale / multi-scale + flip: official 51.8 / 53.6, mmseg 52.16 / 53.65.
# tools/dist_train.sh configs/segmenter/segmenter_vit-l_mask_8xb1-160k_ade20k-640x640.py 8
# Cost: 16.56 GB per GPU in training, 2.62 images/s at 640x640 (mmseg, V100).
_base_ = './segmenter_vit-l_mask_8xb2-160k_ade20k-640x640.py'

train_dataloader = dict(batch_size=1)
