"""Decoders of Segmenter."""

from .eomt_head import EoMTHead
from .linear_head import LinearHead
from .mask_transformer_head import SegmenterMaskTransformerHead

__all__ = ['EoMTHead', 'LinearHead', 'SegmenterMaskTransformerHead']
