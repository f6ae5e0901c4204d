"""Evaluation metrics."""

from .confusion_matrix import ConfusionMatrix
from .mae import MAEMetric

__all__ = ['ConfusionMatrix', 'MAEMetric']
