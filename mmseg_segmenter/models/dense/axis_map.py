"""Resizing, cropping, flipping and averaging windows as one linear map per image axis.

Each of these acts on rows and columns separately, and on all channels alike.
So the pixels of a result are ``rows @ logits @ columns.T`` of the logits of a
head, with two sparse matrices. With the steps composed first, any tile of the
result is computed from the logits directly, and nothing in between is stored.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class DenseMap(NamedTuple):
    """Some outputs of an :class:`AxisMap` as a matrix product.

    Attributes:
        inputs: range of inputs that the outputs use.
        matrix: (outputs, inputs).
    """

    inputs: slice
    matrix: Tensor


@dataclass(frozen=True)
class AxisMap:
    """Compute each output coordinate as a weighted sum of a few input coordinates.

    Attributes:
        index: (n_out, T) input coordinates of each output, int64, on the CPU.
        weight: (n_out, T) weights of these inputs.
    """

    index: Tensor
    weight: Tensor
    _matrices: dict[tuple[int, int, torch.device], DenseMap] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, outputs: slice) -> 'AxisMap':
        """Return the map to a part of the outputs."""
        return AxisMap(self.index[outputs], self.weight[outputs])

    def is_identity(self, n_in: int) -> bool:
        """Return whether the map keeps ``n_in`` coordinates as they are."""
        return self.index.shape == (n_in, 1) and bool(
            (self.index[:, 0] == torch.arange(n_in)).all() and (self.weight == 1).all()
        )

    def inputs(self, outputs: slice) -> slice:
        """Return the range of inputs that some outputs use."""
        index = self.index[outputs]
        return slice(int(index.min()), int(index.max()) + 1)

    def scale(self, outputs: slice, device: torch.device | str = 'cpu') -> Tensor | None:
        """Return the weight of each of some outputs if they are consecutive inputs, else None."""
        index = self.index[outputs]
        first = int(index[0, 0])
        if index.shape[1] > 1 or not torch.equal(index[:, 0], torch.arange(first, first + len(index))):
            return None
        return self.weight[outputs, 0].to(device)

    def flip(self) -> 'AxisMap':
        """Return the map to the mirrored outputs."""
        return AxisMap(self.index.flip(0), self.weight.flip(0))

    def then(self, outer: 'AxisMap') -> 'AxisMap':
        """Return the map that applies this one, then ``outer``."""
        weight = outer.weight[..., None] * self.weight[outer.index]
        return AxisMap(self.index[outer.index].flatten(1), weight.flatten(1))

    def resize(self, length: int, align_corners: bool = False) -> 'AxisMap':
        """Return the map that interpolates the outputs linearly to another length."""
        return self.then(linear_resize(len(self), length, align_corners, self.weight.dtype))

    def dense(self, outputs: slice, device: torch.device | str = 'cpu') -> DenseMap:
        """Return the matrix of some outputs, for the inputs that they use.

        The matrix is cached, because the tiles of a strip, the images of a
        batch and the backward pass share it.

        Args:
            outputs: range of outputs, with start and stop.
            device: device of the matrix.
        """
        key = (outputs.start, outputs.stop, torch.device(device))
        if key not in self._matrices:
            inputs, matrix = self._make_dense(outputs)
            self._matrices[key] = DenseMap(inputs, matrix.to(device, non_blocking=True))
        return self._matrices[key]

    def _make_dense(self, outputs: slice) -> DenseMap:
        index, weight, inputs = self.index[outputs], self.weight[outputs], self.inputs(outputs)
        matrix = weight.new_zeros(len(index), inputs.stop - inputs.start)
        return DenseMap(inputs, matrix.scatter_add_(1, index - inputs.start, weight))


def identity(length: int, dtype: torch.dtype = torch.float32) -> AxisMap:
    """Return the map that keeps each coordinate."""
    return AxisMap(torch.arange(length)[:, None], torch.ones(length, 1, dtype=dtype))


def linear_resize(n_in: int, n_out: int, align_corners: bool = False, dtype: torch.dtype = torch.float32) -> AxisMap:
    """Return linear interpolation, as along one axis of torch's ``'bilinear'``.

    Coordinates are rounded as in torch, in ``dtype``. So results agree for
    large images too, where rounding errors of coordinates are large.

    Args:
        n_in: input length.
        n_out: output length.
        align_corners: as ``F.interpolate``.
        dtype: dtype of the logits, float32 or float64.
    """
    if n_in == n_out:
        return identity(n_in, dtype)
    outputs = torch.arange(n_out, dtype=dtype)
    if align_corners:
        position = outputs * (torch.tensor((n_in - 1) / max(n_out - 1, 1), dtype=dtype))
    else:
        position = ((outputs + 0.5) * torch.tensor(n_in / n_out, dtype=dtype) - 0.5).clamp_(min=0)
    lower = position.long().clamp_(max=n_in - 1)
    upper = (lower + 1).clamp_(max=n_in - 1)
    fraction = position - lower
    return AxisMap(torch.stack((lower, upper), 1), torch.stack((1 - fraction, fraction), 1))
