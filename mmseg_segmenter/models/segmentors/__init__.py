"""Segmentor and test-time augmentation."""

from .eomt import EoMT
from .feature_preprocessor import FeatureDataPreprocessor
from .segmenter import Segmenter
from .tta import SegTTAModel

__all__ = ['EoMT', 'FeatureDataPreprocessor', 'SegTTAModel', 'Segmenter']
