"""Segmentor and test-time augmentation."""

from .segmenter import Segmenter
from .tta import SegTTAModel

__all__ = ['SegTTAModel', 'Segmenter']
