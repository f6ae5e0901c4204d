# EoMT with DINOv2's ViT-L on Cityscapes at crop 1024, the published recipe: 107 epochs, batch 16.
# Published mIoU, single-scale / multi-scale + flip: official 84.2 / -.
# tools/dist_train.sh configs/eomt/eomt_dinov2-l_8xb2-20k_cityscapes-1024x1024.py 8 --amp
# "official" is model_zoo/dinov2.md of github.com/tue-mps/eomt. It was trained in float16 (--amp) on 4 GPUs with 4
# images. 2,975 images make 185 batches per epoch, the rest is dropped there: 107 * 185 = 19,795 iterations.
_base_ = [
    '../_base_/models/eomt_dinov2-l16.py',
    '../_base_/datasets/cityscapes_eomt.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/eomt.py',
]

model = dict(
    data_preprocessor=dict(size=(1024, 1024)),
    backbone=dict(img_size=(1024, 1024)),
    decode_head=dict(num_classes=19),
    test_cfg=dict(crop_size=(1024, 1024), stride=(1024, 1024)),
)
param_scheduler = [dict(type='TwoStageWarmupPolyLR', total_steps=19795, warmup_iters=(500, 1000), by_epoch=False)]
train_cfg = dict(max_iters=19795)
custom_hooks = [dict(type='MaskAnnealingHook', start=[3317, 6634, 9951, 13268], end=[6634, 9951, 13268, 16585])]
