# Seg-L-Mask/16 on the 59 classes of Pascal Context in mmseg, without the background: 80k iterations, batch 16.
# Not a published experiment: the paper has 60 classes.
# tools/dist_train.sh configs/segmenter/segmenter_vit-l_mask_8xb2-80k_pascal-context-59.py 8
_base_ = './segmenter_vit-l_mask_8xb2-80k_pascal-context.py'

model = dict(decode_head=dict(num_classes=59))
train_dataloader = dict(dataset=dict(type='PascalContextDataset59'))
val_dataloader = dict(dataset=dict(type='PascalContextDataset59'))
test_dataloader = val_dataloader
