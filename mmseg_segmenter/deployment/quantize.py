"""Quantise a network to int8 with NNCF."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from .network import quiet

_LAYERS = ('MatMul', 'Convolution', 'Gemm', 'Conv')  # of OpenVINO and ONNX


def quantize(model: Any, images: Iterable[np.ndarray], count: int, keep_last: int = 0) -> Any:
    """Quantise weights and activations after training.

    Softmax and norms stay in floating point (NNCF's scheme for transformers).

    Args:
        model: ``openvino.Model`` or ``onnx.ModelProto``.
        images: inputs of the network, from which the ranges of activations are read.
        count: number of images.
        keep_last: number of last linear layers and convolutions that stay in floating point too.

    Returns:
        A model of the same class.
    """
    import nncf

    kept = linear_layers(model)[-keep_last:] if keep_last else []
    with quiet():
        return nncf.quantize(
            model,
            nncf.Dataset([{'image': image} for image in images]),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=count,
            ignored_scope=nncf.IgnoredScope(names=kept) if kept else None,
        )


def linear_layers(model: Any) -> list[str]:
    """Return the names of the linear layers and convolutions of a model, in the order of the computation."""
    if hasattr(model, 'get_ordered_ops'):
        return [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() in _LAYERS]
    return [node.name for node in model.graph.node if node.op_type in _LAYERS]
