"""Convert to OpenVINO."""

from collections.abc import Sequence
from typing import Any

import torch

from ..network import quiet
from ..packages import require


def to_openvino(program: torch.export.ExportedProgram, output: str, shape: Sequence[int] | None = None) -> Any:
    """Convert a graph to OpenVINO.

    Args:
        program: what :func:`~mmseg_segmenter.deployment.trace` returned.
        output: name of the output; the input is called ``image``.
        shape: of the input, of a graph for one size. OpenVINO does not read it from the graph.

    Returns:
        ``openvino.Model`` with the dtypes of the graph. A CPU with
        instructions for bfloat16 runs it in bfloat16 unless it is compiled
        with ``{'INFERENCE_PRECISION_HINT': 'f32'}``.

    Raises:
        MissingPackageError: the package of the extra ``openvino`` is missing.
    """
    require('openvino', 'openvino')
    import openvino

    with quiet():
        model = openvino.convert_model(program)
    if shape is not None:
        model.reshape(list(shape))
    model.inputs[0].tensor.set_names({'image'})
    model.outputs[0].tensor.set_names({output})
    return model


def save(model: Any, path: str, metadata: dict[str, str], half: bool) -> None:
    """Write an ``.xml`` file, and the weights beside it as ``.bin``.

    Args:
        model: what :func:`to_openvino` returned.
        path: ``.xml`` file.
        metadata: stored as ``rt_info`` below ``mmseg_segmenter``.
        half: store the weights in float16.
    """
    import openvino

    for name, value in metadata.items():
        model.set_rt_info(value, ['mmseg_segmenter', name])
    openvino.save_model(model, path, compress_to_fp16=half)
