"""From a config to a run: options, checks before the work, precision, processes, hooks."""

from .averages import AverageLogHook, LabelledPixelsHook
from .checkpoint_hook import SegmenterCheckpointHook
from .checks import check_datasets, check_weights, datasets, find_checkpoint, registry_errors
from .config import (
    check_tta,
    data_preprocessor,
    decode_head,
    enable_drawing,
    enable_tta,
    evaluators,
    ignore_index,
    load_config,
    loaded_channel_order,
    parse_options,
    save_predictions,
)
from .distributed import run
from .guards import DataGuardHook, FiniteLossHook
from .hooks import RequireAllWeightsHook
from .mask_annealing import MaskAnnealingHook
from .precision import enable_amp, enable_test_amp
from .preemption import EXIT_CODE
from .sharding import ShardedRunner, enable_sharding
from .work_dir import check_start, last_checkpoint, lock_work_dir

__all__ = [
    'EXIT_CODE',
    'AverageLogHook',
    'DataGuardHook',
    'FiniteLossHook',
    'LabelledPixelsHook',
    'MaskAnnealingHook',
    'RequireAllWeightsHook',
    'SegmenterCheckpointHook',
    'ShardedRunner',
    'check_datasets',
    'check_start',
    'check_tta',
    'check_weights',
    'data_preprocessor',
    'datasets',
    'decode_head',
    'enable_amp',
    'enable_drawing',
    'enable_sharding',
    'enable_test_amp',
    'enable_tta',
    'evaluators',
    'find_checkpoint',
    'ignore_index',
    'last_checkpoint',
    'load_config',
    'loaded_channel_order',
    'lock_work_dir',
    'parse_options',
    'registry_errors',
    'run',
    'save_predictions',
]
