# Seg-L/16 on Pascal Context (60 classes), the paper's recipe: 80k iterations, batch 16.
# Neither the official README nor the mmseg zoo has a number for this one.
# tools/dist_train.sh configs/segmenter/segmenter_vit-l_linear_8xb2-80k_pascal-context.py 8
_base_ = [
    '../_base_/models/segmenter_vit-l16_linear.py',
    '../_base_/datasets/pascal_context.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/segmenter_80k.py',
]

model = dict(
    data_preprocessor=dict(size=(480, 480)),
    backbone=dict(img_size=(480, 480)),
    decode_head=dict(num_classes=60),
    test_cfg=dict(crop_size=(480, 480), stride=(448, 448)),
)
train_dataloader = dict(batch_size=2)
