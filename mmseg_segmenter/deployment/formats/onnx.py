"""Convert to ONNX."""

from typing import Any

import torch

from ..network import Dynamic, quiet
from ..packages import require

OPSET = 18
LARGEST = 1 << 31  # bytes of weights in one file: the limit of protobuf


def to_onnx(program: torch.export.ExportedProgram, output: str, dynamic: Dynamic | None = None) -> Any:
    """Convert a graph to ONNX.

    Args:
        program: what :func:`~mmseg_segmenter.deployment.trace` returned.
        output: name of the output; the input is called ``image``.
        dynamic: as given to ``trace``.

    Returns:
        ``torch.onnx.ONNXProgram``; its ``model_proto`` is an ``onnx.ModelProto``.

    Raises:
        MissingPackageError: the packages of the extra ``onnx`` are missing.
    """
    require('onnx', 'onnx', 'onnxscript')
    with quiet():
        return torch.onnx.export(
            program,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
            input_names=['image'],
            output_names=[output],
            dynamic_shapes=(dict(dynamic),) if dynamic else None,
        )


def save(program: Any, path: str, metadata: dict[str, str]) -> None:
    """Write an ONNX file. Weights of more than 2 GB, which do not fit into one, go to ``path + '.data'``.

    Args:
        program: what :func:`to_onnx` returned, or an ``onnx.ModelProto``.
        path: ``.onnx`` file.
        metadata: stored as ``metadata_props``.
    """
    import onnx

    if isinstance(program, onnx.ModelProto):
        onnx.helper.set_model_props(program, metadata)
        onnx.save(program, path)
        return
    program.model.metadata_props.update(metadata)
    program.save(path)
