"""Mixed precision and compilation, as options of a config or a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from ..errors import UserError

DTYPES = {'fp16': 'float16', 'bf16': 'bfloat16'}


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """bfloat16 autocast on a CPU, where mmengine's ``AmpOptimWrapper`` refuses to run.

    Args: as ``OptimWrapper``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield


def cpu_has_bfloat16() -> bool:
    """Are bfloat16 matrix products faster than float32 ones here?"""
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def enable_amp(cfg: Config, precision: str | None = None) -> None:
    """Train in mixed precision.

    On a GPU with mmengine's ``AmpOptimWrapper`` (loss scaling for fp16 only),
    on a CPU with :class:`CpuAmpOptimWrapper`.

    Args:
        cfg: whole config.
        precision: ``'fp16'`` or ``'bf16'``; default fp16 on a GPU (as mmseg's
            ``--amp``) and bf16 on a CPU.

    Raises:
        ValueError: fp16 without a GPU, bf16 on a CPU without instructions for
            it, or an optimizer wrapper of another kind.
    """
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise UserError(f'--amp: optim_wrapper.type={kind!r}, expected OptimWrapper')
    precision = precision or ('bf16' if get_device() == 'cpu' else 'fp16')
    if get_device() == 'cpu':
        check_cpu_precision(precision)
        cfg.optim_wrapper.type = 'CpuAmpOptimWrapper'
        for key in ('loss_scale', 'dtype'):
            cfg.optim_wrapper.pop(key, None)
        return
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.dtype = DTYPES[precision]
    # bfloat16 has the range of float32
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic' if precision == 'fp16' else 1.0)


def check_cpu_precision(precision: str) -> None:
    if precision == 'fp16':
        raise UserError('--amp-dtype fp16 needs a GPU, found none; bf16 runs on CPUs')
    if not cpu_has_bfloat16():
        raise UserError('--amp: this CPU has no instructions for bfloat16, it would be slower than float32')


def enable_test_amp(cfg: Config) -> None:
    """Test under autocast: fp16 on a GPU, bf16 on a CPU, by mmengine's test loop.

    Raises:
        ValueError: a CPU without instructions for bfloat16.
    """
    if get_device() == 'cpu':
        check_cpu_precision('bf16')
    cfg.test_cfg.fp16 = True


def compile_parts(model: Any) -> None:
    """Compile the backbone and the decode head of a model, in place; state_dict keys stay as they are.

    Not the whole model: around these parts stand loops over windows and data
    samples that would only break the graph.

    Args:
        model: a segmentor, also below DDP or test-time augmentation.
    """
    model = model.module if is_model_wrapper(model) else model
    model = getattr(model, 'module', model)
    model.backbone.compile()
    # mmseg calls forward() of a head by name, which Module.compile() would not reach
    model.decode_head.forward = torch.compile(model.decode_head.forward)
