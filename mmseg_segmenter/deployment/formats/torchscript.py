"""Write TorchScript files."""

import warnings

import torch
from torch import Tensor, nn


def save(module: nn.Module, example: Tensor, path: str, metadata: dict[str, str]) -> None:
    """Trace a module at one size, and write it for ``torch.jit.load``.

    Args:
        module: the module, in eval mode.
        example: input of the size that the file is for.
        path: file to write.
        metadata: stored beside the graph, by name.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that sizes become constants, which is meant
        traced = torch.jit.trace(module, example, check_trace=False)
        torch.jit.save(traced, path, _extra_files=metadata)
