"""Export models to files that other runtimes run."""

from .formats.onnx import to_onnx
from .formats.openvino import to_openvino
from .network import HeadLogits, ImageNetwork, probe_sizes, trace
from .packages import require

__all__ = ['HeadLogits', 'ImageNetwork', 'probe_sizes', 'require', 'to_onnx', 'to_openvino', 'trace']
