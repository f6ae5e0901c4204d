# Cityscapes at crop 768 and the sizes of SETR: mmseg's pipelines. The ratios apply to the test size (2049, 1025).
_base_ = ['mmseg::_base_/datasets/cityscapes_768x768.py', './multi_scale_test.py']

tta_pipeline = _base_.pop('multi_scale_test')
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=(int(2049 * r), int(1025 * r)), keep_ratio=True) for r in _base_.img_ratios
]
