"""Models, registered with mmseg on import."""

from .backbones import SegmenterViT
from .decode_heads import LinearHead, SegmenterMaskTransformerHead
from .segmentors import Segmenter, SegTTAModel

__all__ = ['LinearHead', 'SegTTAModel', 'Segmenter', 'SegmenterMaskTransformerHead', 'SegmenterViT']
