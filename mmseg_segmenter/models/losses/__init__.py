"""Losses."""

from .cross_entropy import CrossEntropyLoss, sum_of_weights
from .upsampled_cross_entropy import upsampled_cross_entropy

__all__ = ['CrossEntropyLoss', 'sum_of_weights', 'upsampled_cross_entropy']
