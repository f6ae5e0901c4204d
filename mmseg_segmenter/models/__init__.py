from .backbones import SegmenterViT
from .decode_heads import LinearHead, SegmenterMaskTransformerHead
from .segmentors import Segmenter

__all__ = ['LinearHead', 'Segmenter', 'SegmenterMaskTransformerHead', 'SegmenterViT']
