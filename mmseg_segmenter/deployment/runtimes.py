"""Run the network of a model in onnxruntime or OpenVINO.

The runtime computes the logits of the head and nothing else. Windows, tiles,
augmentations and labels remain those of ``Segmenter``.
"""

import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import MissingFileError, UserError, describe
from ..models.dense import check_finite_logits
from ..models.segmentors import EoMT
from .check import TOLERANCES
from .formats.onnx import to_onnx
from .formats.openvino import to_openvino
from .network import HeadLogits, check_exportable, probe_sizes, trace
from .packages import require

# What runs the network, and the precisions in which it can.
PRECISIONS = {
    'torch': ('fp32', 'fp16', 'bf16'),
    'onnxruntime': ('fp32', 'int8'),
    'openvino': ('fp32', 'fp16', 'bf16', 'int8'),
}
_SUFFIXES = {'onnxruntime': ('.onnx',), 'openvino': ('.xml', '.onnx')}
_HINTS = {'fp32': 'f32', 'fp16': 'f16', 'bf16': 'bf16'}
_DYNAMIC = {0: 'batch', 2: 'height', 3: 'width'}
# Largest difference of the logits of a file from those of the model, in standard deviations of the latter. Those of
# other weights differ by about 1.4, and int8 with untrained weights by up to 0.7.
_SAME_WEIGHTS = 1.0

Shape = tuple[int | None, ...]


class _Port(NamedTuple):
    """An input or output of a network.

    Attributes:
        name: of the tensor.
        is_float: whether it is float32.
        shape: None stands for any length.
    """

    name: str
    is_float: bool
    shape: Shape


class _Loaded(NamedTuple):
    """A network as a runtime has loaded it: a function of one array, and its inputs and outputs."""

    run: Callable[[np.ndarray], np.ndarray]
    inputs: list[_Port]
    outputs: list[_Port]


class RuntimeNetwork:
    """The network of a model in another runtime than torch.

    Args:
        run: from images (B, 3, H, W) float32 to logits (B, K, h, w).
        shape: of the images; None stands for any length.
        file: where the network is from, None if it was made in memory.
    """

    def __init__(self, run: Callable[[np.ndarray], np.ndarray], shape: Shape, file: str | None = None) -> None:
        self._run, self.shape, self._file = run, shape, file

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits (B, K, h, w) of normalised images (B, 3, H, W).

        Raises:
            UserError: the network is for images of another size.
        """
        if any(own not in (None, found) for own, found in zip(self.shape[1:], images.shape[1:], strict=True)):
            raise UserError(
                f'{self._file} is for images of {_text(self.shape[1:])}, found {_text(images.shape[1:])}; export it '
                'for this size, or with --dynamic for any'
            )
        array = images.float().contiguous().numpy()
        parts = [array] if self.shape[0] is None else np.split(array, len(array))
        return torch.from_numpy(np.concatenate([self._run(part) for part in parts]))


def check_precision(runtime: str, precision: str) -> None:
    """Check that a runtime exists and knows a precision.

    Raises:
        UserError: it does not.
    """
    if runtime not in PRECISIONS:
        raise UserError(f'runtime={runtime!r}; expected one of {", ".join(PRECISIONS)}')
    if precision not in PRECISIONS[runtime]:
        raise UserError(
            f'precision={precision!r} with runtime={runtime!r}; expected one of {", ".join(PRECISIONS[runtime])}'
        )


def load_network(model: Any, runtime: str, precision: str = 'fp32', file: str | None = None) -> RuntimeNetwork:
    """Load the network of a model into another runtime.

    It computes what ``Segmenter.head_logits`` does, on the CPU, with as many
    threads as torch. A network that is made here takes images of any size.

    Args:
        model: ``Segmenter`` on the CPU, in eval mode.
        runtime: ``'onnxruntime'`` or ``'openvino'``.
        precision: one of ``PRECISIONS[runtime]``. ``'int8'`` needs a file.
        file: the network of this model, exported beforehand (``.onnx``, or
            ``.xml`` of OpenVINO), from normalised images to logits. Default:
            it is made from the model, which takes seconds.

    Raises:
        MissingFileError: the file does not exist.
        MissingPackageError: the runtime is not installed.
        UserError: this CPU does not have the precision, the model has no
            network that can be exported, its logits are not finite, or the
            file holds something else than this model's network.
    """
    check_precision(runtime, precision)
    require('onnx' if runtime == 'onnxruntime' else 'openvino', runtime)
    check_exportable(model)
    if isinstance(model, EoMT):
        raise UserError(
            f'runtime={runtime!r} computes logits, and model.type=EoMT has masks and classes; use torch, or a file of '
            'tools/deployment/export.py'
        )
    if file is not None:
        _check_file(file, runtime)
    elif precision == 'int8':
        raise UserError(
            f"precision='int8' with runtime={runtime!r} needs a quantised file; tools/deployment/export.py "
            '--precision int8 --dynamic --no-normalise --no-argmax makes one'
        )
    _check_model(model)
    load = _in_onnxruntime if runtime == 'onnxruntime' else _in_openvino
    loaded = load(model, precision, file)
    network = RuntimeNetwork(loaded.run, loaded.inputs[0].shape, file)
    if file is not None:
        _check_ports(file, loaded, model.out_channels)
        _check_weights(file, network, model)
    else:
        _check_sizes(network, model, runtime, precision)
    return network


def release_weights(model: Any) -> None:
    """Free the weights of a model whose ``head_logits`` another runtime computes."""
    for part in (model.backbone, model.decode_head, model.neck if model.with_neck else None):
        if part is not None:
            part.to('meta')


def _program(model: Any) -> torch.export.ExportedProgram:
    return trace(HeadLogits(model), torch.zeros(2, 3, 64, 96), _DYNAMIC)


def _in_onnxruntime(model: Any, precision: str, file: str | None) -> _Loaded:
    import onnxruntime

    if file is not None and precision == 'int8':
        with open(file, 'rb') as stream:  # names of operators are stored as they are
            content = stream.read()
        _check_quantised(file, any(name in content for name in (b'QuantizeLinear', b'QLinear', b'MatMulInteger')))
        del content

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait by spinning would take the cores from torch, which works between the windows.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    with tempfile.TemporaryDirectory() as folder:
        path = file or os.path.join(folder, 'network.onnx')
        if file is None:  # a file, because a model of more than 2 GB cannot be loaded from memory
            to_onnx(_program(model), 'logits', _DYNAMIC).save(path, external_data=True)
        try:
            session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
        except Exception as error:  # of many classes
            if file is None:
                raise
            raise UserError(f'{file}: onnxruntime cannot load it: {describe(error)}') from None

    def port(node: Any) -> _Port:
        shape = tuple(side if isinstance(side, int) else None for side in node.shape)
        return _Port(node.name, node.type == 'tensor(float)', shape)

    inputs, outputs = ([port(node) for node in nodes] for nodes in (session.get_inputs(), session.get_outputs()))
    return _Loaded(lambda images: session.run(None, {inputs[0].name: images})[0], inputs, outputs)


def _in_openvino(model: Any, precision: str, file: str | None) -> _Loaded:
    import openvino

    core = openvino.Core()
    if file is None:
        network = to_openvino(_program(model), 'logits')
    else:
        try:
            network = core.read_model(file)
        except Exception as error:  # of many classes
            raise UserError(f'{file}: OpenVINO cannot load it: {describe(error)}') from None
    capabilities = core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES')
    if precision == 'int8':
        _check_quantised(file, any(op.get_type_name() == 'FakeQuantize' for op in network.get_ops()))
        precision = 'bf16' if 'BF16' in capabilities else 'fp32'  # of what is not quantised
    if precision.upper() not in capabilities:
        raise UserError(f'precision={precision!r}: this CPU has no instructions for it, so it would be slow')
    settings = {'INFERENCE_PRECISION_HINT': _HINTS[precision], 'INFERENCE_NUM_THREADS': torch.get_num_threads()}
    compiled = core.compile_model(network, 'CPU', settings)
    lock = threading.Lock()  # the compiled model has one request

    def run(images: np.ndarray) -> np.ndarray:
        with lock:
            logits: np.ndarray = compiled(images)[0].copy()  # the request reuses its output
            return logits

    def port(node: Any) -> _Port:
        shape = tuple(side.get_length() if side.is_static else None for side in node.partial_shape)
        return _Port(node.any_name, node.element_type == openvino.Type.f32, shape)

    return _Loaded(run, [port(node) for node in compiled.inputs], [port(node) for node in compiled.outputs])


def _check_file(file: str, runtime: str) -> None:
    if not os.path.isfile(file):
        raise MissingFileError(f'network file {file} not found')
    if not file.endswith(_SUFFIXES[runtime]):
        raise UserError(f'{file}: runtime={runtime!r} expects a file {" or ".join(_SUFFIXES[runtime])}')


def _check_quantised(file: str | None, quantised: bool) -> None:
    if not quantised:
        raise UserError(f"{file} is not quantised, which precision='int8' expects")


def _check_ports(file: str, loaded: _Loaded, num_logits: int) -> None:
    """Check that a network takes normalised images and returns logits."""
    inputs, outputs = loaded.inputs, loaded.outputs
    if len(inputs) != 1 or not inputs[0].is_float or len(inputs[0].shape) != 4 or inputs[0].shape[0] not in (None, 1):
        found = ', '.join(f'{port.name} {_text(port.shape)}' for port in inputs)
        raise UserError(
            f'{file} has the inputs {found}; expected one of float32, 1x3xHxW, the normalised image (export.py '
            '--no-normalise)'
        )
    if len(outputs) != 1 or not outputs[0].is_float or len(outputs[0].shape) != 4:
        found = ', '.join(f'{port.name} {_text(port.shape)}' for port in outputs)
        raise UserError(
            f'{file} has the outputs {found}; expected one of float32, BxKxHxW, the logits (export.py --no-argmax)'
        )
    if outputs[0].shape[1] not in (None, num_logits):
        raise UserError(f'{file} has {outputs[0].shape[1]} classes, the model {num_logits}; expected the same')


def _check_model(model: Any) -> None:
    """Check that the logits of a model are finite, since others cannot be compared."""
    with torch.no_grad():
        check_finite_logits(model.head_logits(torch.zeros(1, 3, *probe_sizes(model.backbone)[0])), 'black image')


def _check_weights(file: str, network: RuntimeNetwork, model: Any) -> None:
    """Check on one small image that a file has the weights of the model."""
    height, width = (side or 64 for side in network.shape[2:])
    images = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = model.head_logits(images), network(images)
        if found.shape != expected.shape:  # logits at the size of the image
            expected = torch.nn.functional.interpolate(expected, found.shape[2:], mode='bilinear')
    difference = ((found - expected).std() / expected.std()).item()
    if not difference < _SAME_WEIGHTS:
        raise UserError(
            f'{file} has other weights than the checkpoint: logits differ by {difference:.2f} standard deviations, '
            f'expected less than {_SAME_WEIGHTS}'
        )


def _check_sizes(network: RuntimeNetwork, model: Any, runtime: str, precision: str) -> None:
    """Check that a network that was made here computes what the model does at sizes that it was not traced at."""
    for size in probe_sizes(model.backbone):
        images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad():
                expected, found = model.head_logits(images), network(images)
            difference = ((found - expected).std() / expected.std()).item()
            reason = (
                '' if difference <= TOLERANCES[precision] else f'logits differ by {difference:.2g} standard deviations'
            )
        except Exception as error:  # of many classes
            reason = describe(error)
        if reason:
            raise UserError(
                f'runtime={runtime!r} does not compute {type(model.decode_head).__name__} at all sizes, such as '
                f'{size[0]}x{size[1]} ({reason}); export the network at one size, and give the file as network'
            )


def _text(shape: Sequence[int | None]) -> str:
    return 'x'.join('?' if side is None else str(side) for side in shape)
