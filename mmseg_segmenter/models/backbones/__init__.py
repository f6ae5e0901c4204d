"""Encoders."""

from .vit import SegmenterViT

__all__ = ['SegmenterViT']
