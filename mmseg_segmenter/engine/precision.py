"""Turn on mixed precision and compilation, in a config or a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from ..errors import UserError

DTYPES = {'fp16': 'float16', 'bf16': 'bfloat16'}


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """Train under bfloat16 autocast on a CPU, where mmengine's ``AmpOptimWrapper`` refuses to run.

    The arguments are those of ``OptimWrapper``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Compute the forward pass under autocast."""
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield


def cpu_has_bfloat16() -> bool:
    """Return whether bfloat16 matrix products are faster than float32 ones on this CPU."""
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def enable_amp(cfg: Config, precision: str | None = None) -> None:
    """Train in mixed precision.

    A GPU uses mmengine's ``AmpOptimWrapper`` (loss scaling for fp16 only), a CPU :class:`CpuAmpOptimWrapper`.

    Args:
        cfg: whole config; ``optim_wrapper`` is changed.
        precision: ``'fp16'`` or ``'bf16'``; default: fp16 on a GPU (as mmseg's ``--amp``), bf16 on a CPU.

    Raises:
        UserError: fp16 without a GPU, bf16 on a CPU without instructions for it, or an ``optim_wrapper`` of another
            type.
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
    # bfloat16 has the range of float32 and needs no loss scaling.
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic' if precision == 'fp16' else 1.0)


def check_cpu_precision(precision: str) -> None:
    """Raise an error if a CPU cannot run a precision, or would be slower with it.

    Args:
        precision: ``'fp16'`` or ``'bf16'``.

    Raises:
        UserError: fp16, or a CPU without instructions for bfloat16.
    """
    if precision == 'fp16':
        raise UserError('--amp-dtype fp16 needs a GPU, found none; bf16 runs on CPUs')
    if not cpu_has_bfloat16():
        raise UserError('--amp: this CPU has no instructions for bfloat16, which would be slower than float32')


def enable_test_amp(cfg: Config) -> None:
    """Test under autocast: fp16 on a GPU, bf16 on a CPU.

    Args:
        cfg: whole config; ``test_cfg`` is changed.

    Raises:
        UserError: a CPU without instructions for bfloat16.
    """
    if get_device() == 'cpu':
        check_cpu_precision('bf16')
    cfg.test_cfg.fp16 = True


def segmentor_of(model: Any) -> Any:
    """Return the segmentor inside the wrappers for several processes and for test-time augmentation, if there are any.

    Args:
        model: of a runner.
    """
    model = model.module if is_model_wrapper(model) else model
    return model.module if isinstance(model, BaseTTAModel) else model


def compile_parts(model: Any) -> None:
    """Compile the backbone and the decode head of a model, in place; state_dict keys stay as they are.

    The rest of the model loops over windows and data samples, which would only break the graph.

    Args:
        model: as :func:`segmentor_of`.
    """
    model = segmentor_of(model)
    model.backbone.compile()
    # mmseg calls forward() of a head by name, which Module.compile() would not reach.
    model.decode_head.forward = torch.compile(model.decode_head.forward)
