# Binary segmentation on a dataset of your own: background and one class, masks of 0 and 255; MAE, IoU and F-measure.
# Edit the four lines, see docs/own_dataset.md. Not a published experiment.
# tools/analysis_tools/check_dataset.py configs/segmenter/segmenter_vit-s_mask_own-binary.py
# tools/train.py configs/segmenter/segmenter_vit-s_mask_own-binary.py
_base_ = './segmenter_vit-s_mask_own.py'

# The four lines.
data_root = 'data/own'  # with images/train, images/val, annotations/train, annotations/val
classes = ['background', 'object']
img_suffix, seg_map_suffix = '.jpg', '.png'  # street_01.jpg belongs to street_01.png
mask_values = (0, 255)  # what the masks hold for background and object

# mmseg's LoadAnnotations would take 255 for "ignored" and leave nothing but background.
load_labels = dict(type='LoadLabelMap', values=mask_values)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    load_labels,
    dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    load_labels,
    dict(type='PackSegInputs'),
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(int(2048 * r), int(512 * r)), keep_ratio=True) for r in (0.75, 1.0, 1.25)],
            [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)],
            [load_labels],
            [dict(type='PackSegInputs')],
        ],
    ),
]
dataset = dict(
    data_root=data_root, img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, metainfo=dict(classes=classes)
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline, **dataset))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader
val_evaluator = [dict(type='IoUMetric', iou_metrics=['mIoU', 'mFscore']), dict(type='MAEMetric')]
test_evaluator = val_evaluator
# MAEMetric takes the probability of each pixel, not its label
model = dict(decode_head=dict(num_classes=len(classes)), test_cfg=dict(return_logits=True))
