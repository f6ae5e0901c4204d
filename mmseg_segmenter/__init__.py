"""Segmenter (ICCV 2021) for MMSegmentation.

Importing the package registers its classes with mmseg, which is all that
``custom_imports = dict(imports=['mmseg_segmenter'])`` in a config does.
"""

__version__ = '0.1.0'

from . import compat  # noqa: F401  first: mmseg does not import without it
from .checkpoints import schemes
from .datasets import LoadLabelMap
from .engine import layer_decay  # noqa: F401  registers its class
from .evaluation import ConfusionMatrix, MAEMetric
from .models import LinearHead, Segmenter, SegmenterMaskTransformerHead, SegmenterViT

schemes.register()

__all__ = [
    'ConfusionMatrix',
    'LinearHead',
    'LoadLabelMap',
    'MAEMetric',
    'Segmenter',
    'SegmenterMaskTransformerHead',
    'SegmenterViT',
    '__version__',
]
