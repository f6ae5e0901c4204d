"""Train heads on features of a frozen backbone that were computed once and kept on disk."""

from .key import INDEX
from .samples import CachedFeatures, FixedVariants
from .training import CachedFeaturesHook, use_cached_features
from .write import cache_features

__all__ = ['INDEX', 'CachedFeatures', 'CachedFeaturesHook', 'FixedVariants', 'cache_features', 'use_cached_features']
