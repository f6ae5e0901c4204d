"""From the logits of a head to the pixels of an image."""

from .axis_map import AxisMap, identity, linear_resize
from .logit_map import LogitMap, argmax_labels, check_finite, check_finite_logits
from .mask_map import MaskMap, MergedMasks, WindowMasks, merge_masks
from .pixels import confidence_map, label_map, probability_map
from .windows import AxisWindows, MergedLogits, WindowLogits, average_windows, merge_windows, window_starts

__all__ = [
    'AxisMap',
    'AxisWindows',
    'LogitMap',
    'MaskMap',
    'MergedLogits',
    'MergedMasks',
    'WindowLogits',
    'WindowMasks',
    'argmax_labels',
    'average_windows',
    'check_finite',
    'check_finite_logits',
    'confidence_map',
    'identity',
    'label_map',
    'linear_resize',
    'merge_masks',
    'merge_windows',
    'probability_map',
    'window_starts',
]
