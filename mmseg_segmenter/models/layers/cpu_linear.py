"""Linear layer that uses the faster of torch's two CPU libraries."""

import platform
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def cpu_linear(x_BNC: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply ``F.linear``; as a 1x1 convolution of oneDNN where that is faster.

    torch computes matrix products with MKL, which is slower on AMD processors
    (see :func:`prefers_onednn`). The results agree up to rounding. Only
    float32 inference on the CPU is affected.

    Args:
        x_BNC: (B, N, C) tokens.
        weight: (C', C).
        bias: (C',), or None.

    Returns:
        (B, N, C').
    """
    if (
        x_BNC.device.type != 'cpu'
        or x_BNC.dtype != torch.float32
        or x_BNC.ndim != 3
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled('cpu')
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or not prefers_onednn()
        or not torch.backends.mkldnn.enabled
    ):
        return F.linear(x_BNC, weight, bias)
    B, N, C = x_BNC.shape
    # The tokens become the pixels of an N x 1 image in channels_last format, so that torch does not copy them.
    image = x_BNC.reshape(B, N, 1, C).permute(0, 3, 1, 2)  # (B, C, N, 1)
    # F.conv2d would use oneDNN for a 1x1 kernel only with several threads.
    out = torch.mkldnn_convolution(image, weight[:, :, None, None], bias, (0, 0), (1, 1), (1, 1), 1)  # (B, C', N, 1)
    return out.permute(0, 2, 3, 1).reshape(B, N, len(weight))


@cache
def prefers_onednn() -> bool:
    """Return whether oneDNN convolutions beat MKL matrix products here.

    True on AMD processors (and Hygon's, which are of the same design) if torch
    has both libraries. MKL uses AVX2 kernels there at most, so oneDNN is twice
    as fast with AVX-512, and 10 to 20 % faster without. Elsewhere ``F.linear``
    is left as it is.
    """
    is_amd = any(vendor in _cpu_vendor() for vendor in ('AuthenticAMD', 'HygonGenuine'))
    return is_amd and torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()


def _cpu_vendor() -> str:
    """Return a text that contains the vendor string of the CPU, if the system tells."""
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.is_file():  # Linux, where platform.processor() is often empty
        return next((line for line in cpuinfo.read_text().splitlines() if line.startswith('vendor_id')), '')
    return platform.processor()


class Linear(nn.Linear):
    """``nn.Linear`` that calls :func:`cpu_linear`."""

    def forward(self, x_BNC: Tensor) -> Tensor:
        return cpu_linear(x_BNC, self.weight, self.bias)
