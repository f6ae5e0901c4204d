# Seg-T/16 on ADE20K, the paper's recipe: 160k iterations, batch 8.
# Neither the official README nor the mmseg zoo has a number for this one.
# tools/dist_train.sh configs/segmenter/segmenter_vit-t_linear_8xb1-160k_ade20k.py 8
_base_ = './segmenter_vit-t_linear_8xb2-160k_ade20k.py'

train_dataloader = dict(batch_size=1)
