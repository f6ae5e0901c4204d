# EoMT with DINOv2's ViT-L on ADE20K at crop 512, the published recipe: 31 epochs, batch 16.
# Published mIoU, single-scale / multi-scale + flip: official 58.4 / -.
# tools/dist_train.sh configs/eomt/eomt_dinov2-l_8xb2-39k_ade20k.py 8 --amp
# "official" is model_zoo/dinov2.md of github.com/tue-mps/eomt. It was trained in float16 (--amp) on 4 GPUs with 4
# images. 20,210 images make 1,263 batches per epoch, the rest is dropped there: 31 * 1,263 = 39,153 iterations.
_base_ = [
    '../_base_/models/eomt_dinov2-l16.py',
    '../_base_/datasets/ade20k_eomt.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/eomt.py',
]

# the head from 0 in 500 iterations, then the ViT in 1,000
param_scheduler = [dict(type='TwoStageWarmupPolyLR', total_steps=39153, warmup_iters=(500, 1000), by_epoch=False)]
train_cfg = dict(max_iters=39153)
custom_hooks = [
    dict(type='MaskAnnealingHook', start=[6520, 13040, 19560, 26080], end=[13040, 19560, 26080, 32600]),
]
