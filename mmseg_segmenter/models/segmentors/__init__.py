"""Segmentor and test-time augmentation."""

from .feature_preprocessor import FeatureDataPreprocessor
from .segmenter import Segmenter
from .tta import SegTTAModel

__all__ = ['FeatureDataPreprocessor', 'SegTTAModel', 'Segmenter']
