"""From the logits of a head to the pixels of an image."""

from .axis_map import AxisMap, identity, linear_resize
from .logit_map import LogitMap, argmax_labels
from .windows import average_windows, window_starts

__all__ = ['AxisMap', 'LogitMap', 'argmax_labels', 'average_windows', 'identity', 'linear_resize', 'window_starts']
