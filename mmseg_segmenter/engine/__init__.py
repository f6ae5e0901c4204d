"""From a config to a run: options, checks before the work, precision, processes, hooks."""

from .checks import check_datasets, check_weights, find_checkpoint, registry_errors
from .config import (
    decode_head,
    enable_drawing,
    enable_tta,
    evaluators,
    load_config,
    parse_options,
    save_predictions,
)
from .distributed import run
from .hooks import RequireAllWeightsHook
from .precision import enable_amp, enable_test_amp

__all__ = [
    'RequireAllWeightsHook',
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
    'parse_options',
    'registry_errors',
    'run',
    'save_predictions',
]
