"""Encoders."""

from .timm_vit import TimmViT
from .vit import SegmenterViT

__all__ = ['SegmenterViT', 'TimmViT']
