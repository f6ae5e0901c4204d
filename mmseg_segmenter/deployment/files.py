"""Write exported networks, and run them for a check."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..files import write_atomically
from .formats import onnx, openvino, pt2, torchscript
from .network import HeadLogits, ImageNetwork, trace
from .packages import require

SUFFIXES = {'onnx': '.onnx', 'openvino': '.xml', 'pt2': '.pt2', 'torchscript': '.pt'}
PRECISIONS = {
    'onnx': ('fp32', 'fp16', 'int8'),
    'openvino': ('fp32', 'fp16', 'bf16', 'int8'),
    'pt2': ('fp32', 'fp16', 'bf16'),
    'torchscript': ('fp32', 'fp16', 'bf16'),
}
_DTYPES = {'fp16': torch.float16, 'bf16': torch.bfloat16}

# From an array to an array.
Network = Callable[[np.ndarray], np.ndarray]


def check_format(format: str, precision: str, dynamic: bool) -> None:
    """Check that a format exists and can be written as asked.

    Raises:
        MissingPackageError: a package of its extra is missing; names the command that installs it.
        UserError: the format, the precision or the combination is not known.
    """
    if format not in SUFFIXES:
        raise UserError(f'format={format!r}; expected one of {", ".join(SUFFIXES)}')
    if precision not in PRECISIONS[format]:
        raise UserError(
            f'precision={precision!r} with format={format!r}; expected one of {", ".join(PRECISIONS[format])}'
        )
    if dynamic and format == 'torchscript':
        raise UserError('--dynamic with format=torchscript: a traced graph has one size; use onnx, openvino or pt2')
    if format == 'onnx':
        require('onnx', 'onnx', 'onnxscript', 'onnxruntime')
    if format == 'openvino':
        require('openvino', 'openvino')
    if precision == 'int8':
        require('openvino', 'nncf')


def write_network(
    module: HeadLogits | ImageNetwork,
    example: Tensor,
    path: str,
    format: str,
    precision: str,
    metadata: Mapping[str, str],
    dynamic: Mapping[int, str] | None = None,
    quantize: Callable[[Any], Any] | None = None,
    check: Callable[[Network], Any] | None = None,
    force: bool = False,
) -> Any:
    """Write a network, and what belongs to it, whole or not at all.

    Args:
        module: the network, in float32.
        example: input of the size that the file is for.
        path: file to write; its suffix is that of the format.
        format: one of :data:`SUFFIXES`.
        precision: one of ``PRECISIONS[format]``.
        metadata: stored in the file.
        dynamic: dimensions of the input that may have any size, with their names.
        quantize: makes an int8 model of an ``openvino.Model`` or ``onnx.ModelProto``.
        check: called with the written file as a function, before it gets its name; raises if it is not good.
        force: replace existing files.

    Returns:
        What ``check`` returns.

    Raises:
        ExistingFileError: a file exists and ``force`` is not set.
        FileAccessError: it cannot be written.
        UserError: the network cannot be exported in this way.
    """
    output = 'labels' if isinstance(module, ImageNetwork) and module.argmax else 'logits'
    if precision in _DTYPES and format != 'openvino':
        network = module.network if isinstance(module, ImageNetwork) else module
        network.to(_DTYPES[precision])
    folder, name = os.path.split(path)
    notes = dict(metadata)
    files = [name]
    if format == 'torchscript':
        write: Callable[[str], None] = lambda part: torchscript.save(module, example, part, notes)  # noqa: E731
    else:
        program = trace(module, example, dynamic)
        if format == 'pt2':
            write = lambda part: pt2.save(program, part, notes)  # noqa: E731
        elif format == 'onnx':
            graph = onnx.to_onnx(program, output, dynamic)
            if _size(module) > onnx.LARGEST:
                files.append(f'{name}.data')
            if quantize is not None:
                if len(files) > 1:
                    raise UserError('int8 with format=onnx: more than 2 GB of weights; use --format openvino')
                graph = quantize(graph.model_proto)
            write = lambda part: onnx.save(graph, part, notes)  # noqa: E731
        else:
            graph = openvino.to_openvino(program, output, None if dynamic else example.shape)
            if quantize is not None:
                graph = quantize(graph)
            write = lambda part: openvino.save(graph, part, notes, precision == 'fp16')  # noqa: E731
            files.append(f'{os.path.splitext(name)[0]}.bin')

    writers: dict[str, Callable[[str], None]] = {file: lambda part: None for file in files}  # written with the first
    writers[name] = write

    def checked(staging: str) -> Any:
        return check(load_file(os.path.join(staging, name), format, precision)) if check is not None else None

    return write_atomically(folder, writers, force, checked)


def _size(module: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def load_file(path: str, format: str, precision: str) -> Network:
    """Return a written network as a function from an array to an array, on the CPU.

    Args:
        path: the file.
        format: one of :data:`SUFFIXES`.
        precision: in which OpenVINO computes; the other files hold theirs.
    """
    if format in ('pt2', 'torchscript'):
        module = torch.export.load(path).module() if format == 'pt2' else torch.jit.load(path)

        def run(array: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                result: np.ndarray = module(torch.from_numpy(array)).numpy()
            return result

        return run
    if format == 'onnx':
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
        name = session.get_inputs()[0].name
        return lambda array: session.run(None, {name: array})[0]
    import openvino as ov

    hint = {'fp32': 'f32', 'fp16': 'f32', 'int8': 'f32', 'bf16': 'bf16'}[precision]
    compiled = ov.Core().compile_model(path, 'CPU', {'INFERENCE_PRECISION_HINT': hint})
    return lambda array: compiled(array)[0].copy()
