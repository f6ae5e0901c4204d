"""Use a trained model from Python: :class:`Predictor` and its results."""

from .images import InputImage, read_image
from .prediction import Classes, LegendEntry, Prediction
from .predictor import Predictor

__all__ = ['Classes', 'InputImage', 'LegendEntry', 'Prediction', 'Predictor', 'read_image']
