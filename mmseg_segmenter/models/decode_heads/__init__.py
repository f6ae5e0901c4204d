"""Decoders of Segmenter."""

from .linear_head import LinearHead
from .mask_transformer_head import SegmenterMaskTransformerHead

__all__ = ['LinearHead', 'SegmenterMaskTransformerHead']
