from .feature_cache import CachedFeatures, CachedFeaturesHook, FixedVariants
from .label_map import LoadLabelMap
from .load_image import LoadImage
from .skip_bad import SkipBadSamples

__all__ = ['CachedFeatures', 'CachedFeaturesHook', 'FixedVariants', 'LoadImage', 'LoadLabelMap', 'SkipBadSamples']
