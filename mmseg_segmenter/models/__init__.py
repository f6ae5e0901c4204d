"""Models, registered with mmseg on import."""

from .backbones import SegmenterViT, TimmViT
from .decode_heads import EoMTHead, LinearHead, SegmenterMaskTransformerHead
from .segmentors import EoMT, Segmenter, SegTTAModel

__all__ = [
    'EoMT',
    'EoMTHead',
    'LinearHead',
    'SegTTAModel',
    'Segmenter',
    'SegmenterMaskTransformerHead',
    'SegmenterViT',
    'TimmViT',
]
