# ADE20K at crop 512: mmseg's pipelines, with the multi-scale test of the paper.
_base_ = ['mmseg::_base_/datasets/ade20k.py', './multi_scale_test.py']

# As in the official code, the ratios apply to the test size (2048, 512); in mmseg 1.x they apply to the original image.
tta_pipeline = _base_.pop('multi_scale_test')
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=(int(2048 * r), int(512 * r)), keep_ratio=True) for r in _base_.img_ratios
]
