from .label_map import LoadLabelMap
from .load_image import LoadImage
from .skip_bad import SkipBadSamples

__all__ = ['LoadImage', 'LoadLabelMap', 'SkipBadSamples']
