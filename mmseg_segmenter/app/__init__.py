"""A page in the browser that segments images and looks inside the model; ``tools/app.py`` starts it."""

from .models import Models
from .results import Result, Results

__all__ = ['Models', 'Result', 'Results']
