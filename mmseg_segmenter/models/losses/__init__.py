"""Losses."""

from .cross_entropy import CrossEntropyLoss, sum_of_weights
from .mask_classification_loss import MaskClassificationLoss
from .upsampled_cross_entropy import upsampled_cross_entropy

__all__ = ['CrossEntropyLoss', 'MaskClassificationLoss', 'sum_of_weights', 'upsampled_cross_entropy']
