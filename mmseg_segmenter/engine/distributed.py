"""Several processes: gloo on machines without a GPU, and an orderly end."""

import gc
from typing import Literal

import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner
from mmseg.registry import RUNNERS

from .precision import compile_parts


def _use_cpu_group(cfg: Config) -> None:
    """Let torchrun's processes train with gloo where there is no accelerator.

    mmengine selects a CUDA device when it makes the process group, and gives
    DDP one; it leaves both alone when they are settled before. With an
    accelerator, or another launcher than ``'pytorch'``, nothing is done.

    Args:
        cfg: whole config; ``model_wrapper_cfg`` is changed.
    """
    if cfg.launcher != 'pytorch' or get_device() != 'cpu':
        return
    if not dist.is_initialized():
        dist.init_process_group('gloo')
    wrapper = dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.model_wrapper_cfg = {**wrapper, **cfg.get('model_wrapper_cfg', {}), 'device_ids': None}


def run(cfg: Config, action: Literal['train', 'test'], compile_model: bool = False) -> None:
    """Build the runner and let it train or test, in the processes that ``cfg.launcher`` started.

    A gloo group has threads that may still hold tensors, and one that lets go
    of them while the interpreter ends aborts it (``terminate called without an
    active exception``): the run is done and saved, yet exits with an error. So
    the group, and the model that holds on to it, go while Python is alive.
    After an exception nothing is taken down, as other processes may be waiting.

    Args:
        cfg: whole config.
        action: method of the runner.
        compile_model: compile backbone and decode head.
    """
    _use_cpu_group(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    if compile_model:
        compile_parts(runner.model)
    getattr(runner, action)()
    if dist.is_initialized():
        dist.barrier()  # a slower process may still be reading from this one
        dist.destroy_process_group()
        del runner
        gc.collect()
