# Seg-S/16 on ADE20K, the paper's recipe: 160k iterations, batch 8.
# Published mIoU, single-scale / multi-scale + flip: mmseg 45.75 / 46.82.
# tools/dist_train.sh configs/segmenter/segmenter_vit-s_linear_8xb1-160k_ade20k.py 8
# Cost: 1.78 GB per GPU in training, 28.07 images/s at 512x512 (mmseg, V100).
_base_ = './segmenter_vit-s_linear_8xb2-160k_ade20k.py'

train_dataloader = dict(batch_size=1)
