from .config import (
    check_datasets,
    enable_amp,
    enable_drawing,
    enable_tta,
    find_checkpoint,
    load_config,
    save_predictions,
)
from .distributed import run

__all__ = [
    'check_datasets',
    'enable_amp',
    'enable_drawing',
    'enable_tta',
    'find_checkpoint',
    'load_config',
    'run',
    'save_predictions',
]
