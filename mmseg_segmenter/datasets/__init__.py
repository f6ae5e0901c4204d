from .label_map import LoadLabelMap

__all__ = ['LoadLabelMap']
