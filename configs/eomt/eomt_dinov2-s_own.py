# EoMT with DINOv2's ViT-S on a dataset of your own, one GPU: edit the four lines, see docs/own_dataset.md.
# Not a published experiment: the model, pipelines and optimizer of eomt_dinov2-s_8xb2-39k_ade20k.py with batch 8, for
# 20k iterations.
# tools/analysis_tools/check_dataset.py configs/eomt/eomt_dinov2-s_own.py
# tools/train.py configs/eomt/eomt_dinov2-s_own.py --amp
_base_ = './eomt_dinov2-s_8xb2-39k_ade20k.py'

# Edit these four lines.
data_root = 'data/own'  # with images/train, images/val, annotations/train, annotations/val
classes = ['background', 'road', 'building']  # names of labels 0, 1, 2; keep the [] around a single name
img_suffix, seg_map_suffix = '.jpg', '.png'  # street_01.jpg belongs to street_01.png
reduce_zero_label = False  # True: 0 in the masks is "no class", and classes start at 1

max_iters = 20000
dataset = dict(
    type='BaseSegDataset',
    data_root=data_root,
    img_suffix=img_suffix,
    seg_map_suffix=seg_map_suffix,
    reduce_zero_label=reduce_zero_label,
    metainfo=dict(classes=classes),
)
train_dataloader = dict(
    batch_size=8,
    dataset=dict(data_prefix=dict(img_path='images/train', seg_map_path='annotations/train'), **dataset),
)
val_dataloader = dict(
    dataset=dict(data_prefix=dict(img_path='images/val', seg_map_path='annotations/val'), **dataset),
)
test_dataloader = val_dataloader

model = dict(decode_head=dict(num_classes=len(classes)))
param_scheduler = [
    dict(type='TwoStageWarmupPolyLR', total_steps=max_iters, warmup_iters=(500, 1000), by_epoch=False),
]
train_cfg = dict(max_iters=max_iters, val_interval=1000)
# masked attention annealed in the same parts of the training, from 2/12 to 4/12 of it in the first block, ...
custom_hooks = [
    dict(
        type='MaskAnnealingHook',
        start=[max_iters * part // 12 for part in (2, 5, 8)],
        end=[max_iters * part // 12 for part in (4, 7, 10)],
    ),
]
default_hooks = dict(checkpoint=dict(interval=1000, save_best='mIoU', max_keep_ckpts=2))
