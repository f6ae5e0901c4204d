"""From the logits of a head to the pixels of an image."""

from .axis_map import AxisMap, identity, linear_resize
from .logit_map import LogitMap, argmax_labels
from .pixels import confidence_map, label_map, probability_map
from .windows import average_windows, window_starts

__all__ = [
    'AxisMap',
    'LogitMap',
    'argmax_labels',
    'average_windows',
    'confidence_map',
    'identity',
    'label_map',
    'linear_resize',
    'probability_map',
    'window_starts',
]
