from .config import (
    check_datasets,
    check_weights,
    decode_head,
    enable_drawing,
    enable_tta,
    evaluators,
    find_checkpoint,
    load_config,
    save_predictions,
)
from .distributed import run
from .precision import enable_amp, enable_test_amp

__all__ = [
    'check_datasets',
    'check_weights',
    'decode_head',
    'enable_amp',
    'enable_drawing',
    'enable_test_amp',
    'enable_tta',
    'evaluators',
    'find_checkpoint',
    'load_config',
    'run',
    'save_predictions',
]
