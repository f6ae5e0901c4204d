"""Quantise a network to int8 with NNCF."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from .network import quiet

_LAYERS = ('MatMul', 'Convolution', 'Gemm', 'Conv')  # of OpenVINO and ONNX
_ATTENTION = 'ScaledDotProductAttention'  # of OpenVINO


def quantize(model: Any, images: Iterable[np.ndarray], count: int, keep_last: int = 0) -> Any:
    """Quantise weights and activations after training.

    Softmax and norms stay in floating point (NNCF's scheme for transformers). So does the attention of a network for
    images of any size: OpenVINO then converts queries and keys between the precisions in passes of their own, which
    take longer than int8 saves.

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
    options: dict[str, Any] = {}
    data: list[Any]
    if _is_openvino(model):
        data = list(images)
        if model.is_dynamic():
            kept += [op.get_friendly_name() for op in model.get_ops() if op.get_type_name() == _ATTENTION]
            # With SmoothQuant, the logits of networks with dynamic shapes were off by ten times as much as without it.
            # For those of one size it made no difference.
            options['advanced_parameters'] = nncf.AdvancedQuantizationParameters(
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
            )
    else:
        data = [{model.graph.input[0].name: image} for image in images]
    if kept:
        options['ignored_scope'] = nncf.IgnoredScope(names=kept)
    with quiet():
        return nncf.quantize(
            model, nncf.Dataset(data), model_type=nncf.ModelType.TRANSFORMER, subset_size=count, **options
        )


def linear_layers(model: Any) -> list[str]:
    """Return the names of the linear layers and convolutions of a model, in the order of the computation."""
    if _is_openvino(model):
        return [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() in _LAYERS]
    return [node.name for node in model.graph.node if node.op_type in _LAYERS]


def _is_openvino(model: Any) -> bool:
    return hasattr(model, 'get_ordered_ops')
