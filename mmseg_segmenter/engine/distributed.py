"""Run training or testing in one or several processes, also without a GPU."""

import gc
import os
from datetime import timedelta
from typing import Literal

import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner, find_latest_checkpoint
from mmseg.registry import RUNNERS

from ..compat import hidden_if_broken
from .averages import AverageLogHook, LabelledPixelsHook
from .checks import check_optimizer, check_run, guard_work_dir, registry_errors
from .guards import DataGuardHook, FiniteLossHook, skip_bad_samples
from .heartbeat import silent_processes_named
from .hooks import RequireAllWeightsHook
from .local_files import pipes_refused
from .precision import compile_parts
from .work_dir import unlock_work_dir


def _use_cpu_group(cfg: Config) -> None:
    """Let the processes of torchrun communicate by gloo if there is no accelerator.

    mmengine selects a CUDA device when it makes the process group, and hands it to DDP. It does neither if group and
    device are set before. With an accelerator, or another launcher than ``'pytorch'``, nothing is done.

    Args:
        cfg: whole config; ``model_wrapper_cfg`` is changed.
    """
    if cfg.launcher != 'pytorch' or get_device() != 'cpu':
        return
    if not dist.is_initialized():
        seconds = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout')
        dist.init_process_group('gloo', timeout=None if seconds is None else timedelta(seconds=seconds))
    wrapper = dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.model_wrapper_cfg = {**wrapper, **cfg.get('model_wrapper_cfg', {}), 'device_ids': None}


def _resume_after_restart(cfg: Config) -> None:
    """Continue from the last checkpoint if torchrun has started the processes anew after one of them failed.

    torchrun counts restarts on each machine separately. With ``tools/dist_run.sh``, which notes when it is started, a
    checkpoint that is younger tells all machines the same.

    Args:
        cfg: whole config; ``resume`` and ``load_from`` are changed.
    """
    latest = find_latest_checkpoint(cfg.work_dir) if 'TORCHELASTIC_RESTART_COUNT' in os.environ else None
    if latest is None:
        return
    started = os.environ.get('MMSEG_SEGMENTER_STARTED')
    restarted = os.path.getmtime(latest) > int(started) if started else os.environ['TORCHELASTIC_RESTART_COUNT'] != '0'
    if restarted:
        cfg.resume = True
        cfg.load_from = None


def run(
    cfg: Config, action: Literal['train', 'test'], compile_model: bool = False, allow_partial: bool = False
) -> None:
    """Build the runner and let it train or test, in the processes that ``cfg.launcher`` started.

    A gloo group has threads that may still hold tensors. If such a thread frees them while the interpreter ends, the
    process aborts (``terminate called without an active exception``) although the run is done and saved. Therefore
    the group, and the model that refers to it, are destroyed before. After an exception nothing is destroyed, as
    other processes may be waiting.

    Args:
        cfg: whole config.
        action: method of the runner.
        compile_model: compile backbone and decode head.
        allow_partial: test a model even if the checkpoint has too few tensors for it, or of other shapes.

    Raises:
        UserError: as :func:`~.checks.check_run`, :func:`~.checks.check_optimizer`, :func:`~.checks.guard_work_dir`,
            :func:`~.checks.registry_errors`, :class:`~.checkpoint_hook.SegmenterCheckpointHook` and
            :class:`~.hooks.RequireAllWeightsHook`.
        FileAccessError: as :func:`~.checks.check_run`.
        SystemExit: with code 75, a signal has stopped the training.
    """
    check_run(cfg)
    if action == 'train':
        check_optimizer(cfg)
        _resume_after_restart(cfg)
        guard_work_dir(cfg)
        if cfg.get('skip_bad'):
            skip_bad_samples(cfg)
    _use_cpu_group(cfg)
    # The runner imports torchvision to log its version.
    with hidden_if_broken('torchvision'), registry_errors(cfg):
        sharded_for_test = action == 'test' and cfg.get('runner_type') == 'ShardedRunner'  # checkpoints are whole
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg and not sharded_for_test else Runner.from_cfg(cfg)
        # Hooks that any config needs. They are not in the config, which is kept in the work dir.
        if action == 'test' and not allow_partial:
            runner.register_hook(RequireAllWeightsHook())
        for hook in (AverageLogHook, LabelledPixelsHook, FiniteLossHook, DataGuardHook) if action == 'train' else ():
            if not any(isinstance(other, hook) for other in runner.hooks):
                runner.register_hook(hook())
        if compile_model:
            compile_parts(runner.model)
        code = None
        try:
            with silent_processes_named(), pipes_refused():
                getattr(runner, action)()
        except SystemExit as stopped:  # all processes have saved and stop, see SegmenterCheckpointHook
            code = stopped.code
    if dist.is_initialized():
        dist.barrier()  # another process may still be reading from this one
        dist.destroy_process_group()
        del runner
        gc.collect()
    unlock_work_dir(cfg.work_dir)
    if code is not None:
        raise SystemExit(code)
