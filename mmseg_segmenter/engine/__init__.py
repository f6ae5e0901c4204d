from .config import (
    check_datasets,
    enable_amp,
    enable_drawing,
    enable_tta,
    find_checkpoint,
    load_config,
    save_predictions,
)
from .distributed import use_cpu_process_group

__all__ = [
    'check_datasets',
    'enable_amp',
    'enable_drawing',
    'enable_tta',
    'find_checkpoint',
    'load_config',
    'save_predictions',
    'use_cpu_process_group',
]
