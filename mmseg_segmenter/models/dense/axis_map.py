"""Resizing, cropping, flipping and averaging windows as one linear map per image axis.

All of them act on rows and columns separately, and on every channel alike, so
whatever lies between the logits of a head and the pixels of a result is
``rows @ logits @ columns.T`` with two sparse matrices. Composing those first
means that any tile of the result can be had straight from the logits, and
nothing in between is ever stored.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class AxisMap:
    """Each output coordinate as a weighted sum of a few input coordinates.

    Attributes:
        index: (n_out, T) input coordinates, int64, on the CPU.
        weight: (n_out, T) their weights.
    """

    index: Tensor
    weight: Tensor
    _matrices: dict[tuple[int, int, torch.device], tuple[slice, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, outputs: slice) -> 'AxisMap':
        """Crop the output."""
        return AxisMap(self.index[outputs], self.weight[outputs])

    def is_identity(self, n_in: int) -> bool:
        """Whether this leaves ``n_in`` coordinates as they are."""
        return self.index.shape == (n_in, 1) and bool(
            (self.index[:, 0] == torch.arange(n_in)).all() and (self.weight == 1).all()
        )

    def flip(self) -> 'AxisMap':
        """Mirror the output."""
        return AxisMap(self.index.flip(0), self.weight.flip(0))

    def then(self, outer: 'AxisMap') -> 'AxisMap':
        """``outer`` applied to the output of this map."""
        weight = outer.weight[..., None] * self.weight[outer.index]
        return AxisMap(self.index[outer.index].flatten(1), weight.flatten(1))

    def resize(self, length: int, align_corners: bool = False) -> 'AxisMap':
        """Interpolate the output linearly to another length."""
        return self.then(linear_resize(len(self), length, align_corners, self.weight.dtype))

    def dense(self, outputs: slice, device: torch.device | str = 'cpu') -> tuple[slice, Tensor]:
        """The matrix of some outputs, without the inputs that none of them uses.

        It is kept: all tiles of a strip share one, and so do all images of a
        batch and the way back.

        Returns:
            The inputs used, and a matrix (outputs, inputs) on ``device``.
        """
        key = (outputs.start, outputs.stop, torch.device(device))
        if key not in self._matrices:
            inputs, matrix = self._make_dense(outputs)
            self._matrices[key] = inputs, matrix.to(device, non_blocking=True)
        return self._matrices[key]

    def _make_dense(self, outputs: slice) -> tuple[slice, Tensor]:
        index, weight = self.index[outputs], self.weight[outputs]
        start, stop = int(index.min()), int(index.max()) + 1
        matrix = weight.new_zeros(len(index), stop - start)
        return slice(start, stop), matrix.scatter_add_(1, index - start, weight)


def identity(length: int, dtype: torch.dtype = torch.float32) -> AxisMap:
    """Every coordinate as it is."""
    return AxisMap(torch.arange(length)[:, None], torch.ones(length, 1, dtype=dtype))


def linear_resize(n_in: int, n_out: int, align_corners: bool = False, dtype: torch.dtype = torch.float32) -> AxisMap:
    """Linear interpolation, as one axis of torch's ``'bilinear'``.

    Coordinates are rounded as torch rounds them, in ``dtype``, so that far
    from the origin of large images both err alike.

    Args:
        n_in: input length.
        n_out: output length.
        align_corners: as ``F.interpolate``.
        dtype: of the logits, at least float32.
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
