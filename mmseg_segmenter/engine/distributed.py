"""Several processes on machines without a GPU."""

import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device


def use_cpu_process_group(cfg: Config) -> None:
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
