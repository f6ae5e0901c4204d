"""Files of networks for other runtimes than torch."""

import os
from typing import Any

import torch

from ...deployment import HeadLogits, require, to_onnx, to_openvino, trace
from ...deployment.formats.openvino import save
from ...deployment.quantize import quantize
from .cases import VARIANTS

_DYNAMIC = {0: 'batch', 2: 'height', 3: 'width'}


def write_network(model: Any, variant: str, folder: str, images: torch.Tensor) -> str:
    """Write the network of a model to a file that a variant loads.

    Args:
        model: in eval mode.
        variant: one of ``VARIANTS`` with another runtime than torch.
        folder: for the file.
        images: (N, 3, H, W) float32 normalised, which calibrate int8.

    Returns:
        Path of the file.
    """
    runtime, precision, _ = VARIANTS[variant]
    program = trace(HeadLogits(model), images[:1], _DYNAMIC)
    if runtime == 'onnxruntime':
        path = os.path.join(folder, f'{variant}.onnx')
        to_onnx(program, 'logits', _DYNAMIC).save(path)
        return path
    network = to_openvino(program, 'logits')
    if precision == 'int8':
        require('openvino', 'nncf')
        network = quantize(network, [image[None].numpy() for image in images], len(images))
    path = os.path.join(folder, f'{variant}.xml')
    save(network, path, {}, half=False)
    return path


def size_mb(path: str) -> float:
    """Return the size of a network in MB, with the file of its weights."""
    weights = [os.path.splitext(path)[0] + '.bin'] if path.endswith('.xml') else [f'{path}.data']
    return sum(os.path.getsize(file) for file in (path, *weights) if os.path.exists(file)) / 1e6
