_base_ = 'mmseg::_base_/default_runtime.py'
# This line makes mmseg import this package and so register its classes.
custom_imports = dict(imports=['mmseg_segmenter'], allow_failed_imports=False)
# mmseg's 0.8 hides the image under the colours.
visualizer = dict(alpha=0.6)
