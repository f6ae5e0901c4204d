# ADE20K at crop 640 (ViT-L): mmseg's pipelines, with the multi-scale test of the paper.
# Validation and test bring the short side of an image to 640, as validation during the authors' training does. Their
# evaluation script segm.eval.miou brings it to 512 for every ADE20K model, unless it is run with --im-size 640; the
# windows are 640 in both. To score like that script without the option, test with
#     --cfg-options test_dataloader.dataset.pipeline.1.scale="(2048,512)"
_base_ = ['mmseg::_base_/datasets/ade20k_640x640.py', './multi_scale_test.py']

# As in the official code, the ratios apply to the test size (2560, 640); in mmseg 1.x they apply to the original image.
tta_pipeline = _base_.pop('multi_scale_test')
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=(int(2560 * r), int(640 * r)), keep_ratio=True) for r in _base_.img_ratios
]
# Loaders that refuse damaged files, see docs/training.md
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[:2] = [dict(type='LoadImage'), dict(type='LoadLabelMap')]
test_pipeline[0], test_pipeline[2] = train_pipeline[:2]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
