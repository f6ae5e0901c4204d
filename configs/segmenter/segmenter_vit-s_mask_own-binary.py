# Binary segmentation on a dataset of your own: background and one class, masks of 0 and 255; MAE, IoU and F-measure.
# Edit the four lines, see docs/own_dataset.md. Not a published experiment.
# tools/analysis_tools/check_dataset.py configs/segmenter/segmenter_vit-s_mask_own-binary.py
# tools/train.py configs/segmenter/segmenter_vit-s_mask_own-binary.py
_base_ = './segmenter_vit-s_mask_own.py'

# Edit these four lines.
data_root = 'data/own'  # with images/train, images/val, annotations/train, annotations/val
classes = ['background', 'object']
img_suffix, seg_map_suffix = '.jpg', '.png'  # street_01.jpg belongs to street_01.png
mask_values = (0, 255)  # values in the masks for background and object

# mmseg's LoadAnnotations would read 255 as "ignored", and only background would be left.
load_labels = dict(type='LoadLabelMap', values=mask_values)
train_pipeline, test_pipeline, tta_pipeline = _base_.train_pipeline, _base_.test_pipeline, _base_.tta_pipeline
train_pipeline[1] = load_labels
test_pipeline[2] = load_labels
tta_pipeline[1].transforms[2] = [load_labels]
dataset = dict(
    data_root=data_root, img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, metainfo=dict(classes=classes)
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline, **dataset))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader
val_evaluator = [dict(type='IoUMetric', iou_metrics=['mIoU', 'mFscore']), dict(type='MAEMetric')]
test_evaluator = val_evaluator
# MAEMetric needs the probability of each pixel, not its label.
model = dict(decode_head=dict(num_classes=len(classes)), test_cfg=dict(return_logits=True))
