# Seg-S-Mask/16 from the AugReg ViT on a dataset of your own, one GPU: edit the four lines, see docs/own_dataset.md.
# Not a published experiment: the paper's optimizer and batch size, for 20k iterations.
# tools/analysis_tools/check_dataset.py configs/segmenter/segmenter_vit-s_mask_own.py
# tools/train.py configs/segmenter/segmenter_vit-s_mask_own.py
_base_ = [
    '../_base_/models/segmenter_vit-s16_mask.py',
    '../_base_/datasets/multi_scale_test.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/segmenter_160k.py',
]

# Edit these four lines.
data_root = 'data/own'  # with images/train, images/val, annotations/train, annotations/val
classes = ['background', 'road', 'building']  # names of labels 0, 1, 2; keep the [] around a single name
img_suffix, seg_map_suffix = '.jpg', '.png'  # street_01.jpg belongs to street_01.png
reduce_zero_label = False  # True: 0 in the masks is "no class", and classes start at 1

crop_size = (512, 512)
max_iters = 20000
train_pipeline = [
    dict(type='LoadImage'),
    dict(type='LoadLabelMap'),
    dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImage'),
    # Resizes the short side to 512, whatever the size of the images.
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    # Labels are loaded after Resize: scores and pictures are at the original size.
    dict(type='LoadLabelMap'),
    dict(type='PackSegInputs'),
]
img_ratios = [0.75, 1.0, 1.25]
tta_pipeline = _base_.pop('multi_scale_test')
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=(int(2048 * r), int(512 * r)), keep_ratio=True) for r in img_ratios
]
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
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        data_prefix=dict(img_path='images/train', seg_map_path='annotations/train'), pipeline=train_pipeline, **dataset
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        data_prefix=dict(img_path='images/val', seg_map_path='annotations/val'), pipeline=test_pipeline, **dataset
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

model = dict(
    decode_head=dict(num_classes=len(classes)),
)
param_scheduler = [dict(type='PolyLR', eta_min=1e-5, power=0.9, begin=0, end=max_iters + 1, by_epoch=False)]
train_cfg = dict(max_iters=max_iters, val_interval=1000)
default_hooks = dict(checkpoint=dict(interval=1000, save_best='mIoU', max_keep_ckpts=2))
