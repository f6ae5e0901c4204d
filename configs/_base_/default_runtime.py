_base_ = 'mmseg::_base_/default_runtime.py'
# The line that makes any mmseg config see this package.
custom_imports = dict(imports=['mmseg_segmenter'], allow_failed_imports=False)
# mmseg's 0.8 hides the image under the colours.
visualizer = dict(alpha=0.6)
