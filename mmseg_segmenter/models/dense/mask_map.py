"""Compute the class scores of an image from masks and classes of queries, tile by tile.

Shapes: n windows, Q queries, K classes, H x W pixels, h x w mask logits of a window.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from .axis_map import AxisMap, identity
from .logit_map import LogitMap
from .windows import WindowGrid, average_windows


class WindowMasks(NamedTuple):
    """Masks and classes of the queries in a batch of windows.

    Attributes:
        masks: (n, Q, h, w) logits.
        classes: (n, Q, K) probabilities; their sum is below 1 by the
            probability of no class.
        size: height and width in pixels that the masks cover, padding
            included.
    """

    masks: Tensor
    classes: Tensor
    size: tuple[int, int]


class Placement(NamedTuple):
    """Windows along one axis.

    Attributes:
        starts: first pixel of each window.
        window: from the logits of a window to its pixels.
    """

    starts: list[int]
    window: AxisMap

    def overlap(self, i: int, pixels: slice) -> tuple[slice, slice] | None:
        """Return which of some pixels window ``i`` covers, and its own coordinates of them; None if none."""
        start = self.starts[i]
        first, last = max(pixels.start, start), min(pixels.stop, start + len(self.window))
        if first >= last:
            return None
        return slice(first - pixels.start, last - pixels.start), slice(first - start, last - start)


@dataclass(frozen=True)
class MaskMap(LogitMap):
    """Compute the scores of K classes at H x W pixels: the sum over queries of mask times class probability.

    The masks of a window are enlarged to its pixels before the sigmoid, so
    windows cannot be averaged before it. A tile is computed from all windows
    that it overlaps, then averaged, and taken to the pixels of the image. So
    the masks of all queries exist for a tile only.

    Attributes:
        logits: (n, Q, h, w) mask logits; windows row by row.
        rows: from the rows of the windows to those of the image, the mean
            over windows included.
        columns: likewise.
        classes: (n, K, Q) probabilities.
        vertical: rows of the windows.
        horizontal: columns of the windows.
    """

    classes: Tensor
    vertical: Placement
    horizontal: Placement

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.rows), self.classes.shape[1], len(self.columns)

    @property
    def tile_channels(self) -> int:
        return self.classes.shape[1] + self.classes.shape[2]

    def stored_sum(self) -> Tensor:
        return self.logits.sum() + self.classes.sum()

    def probabilities(self, rows: slice, columns: slice) -> Tensor:
        """Return the scores of a part of the image, divided by their sum over the classes."""
        scores = self.tile(rows, columns)
        return scores.div_(scores.sum(dim=1, keepdim=True).clamp_min_(torch.finfo(scores.dtype).tiny))

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """Return the scores (rows, K, columns) of a part of the image."""
        device = self.logits.device
        sums = self._sum_over_windows(self.rows.inputs(rows), self.columns.inputs(columns))  # (K, r, c)
        with torch.autocast(device.type, enabled=False):
            row_scale, column_scale = self.rows.scale(rows, device), self.columns.scale(columns, device)
            if row_scale is not None and column_scale is not None:
                if bool((self.rows.weight[rows] != 1).any() or (self.columns.weight[columns] != 1).any()):
                    sums *= row_scale[:, None] * column_scale
                return sums.transpose(0, 1)
            part = sums @ self.columns.dense(columns, device).matrix.T
            return (self.rows.dense(rows, device).matrix @ part).transpose(0, 1)

    def _sum_over_windows(self, rows: slice, columns: slice) -> Tensor:
        """Return the scores (K, rows, columns) of pixels of the windows, added up where windows overlap."""
        size = rows.stop - rows.start, columns.stop - columns.start
        out: Tensor | None = None
        for number, (i, j) in enumerate(product(range(len(self.vertical.starts)), range(len(self.horizontal.starts)))):
            vertical, horizontal = self.vertical.overlap(i, rows), self.horizontal.overlap(j, columns)
            if vertical is None or horizontal is None:
                continue
            part = self._window_scores(number, vertical[1], horizontal[1])
            if out is None and part.shape[1:] == size:
                out = part
                continue
            if out is None:
                out = part.new_zeros(len(part), *size)
            out[:, vertical[0], horizontal[0]] += part
        assert out is not None  # windows leave no gaps
        return out

    def _window_scores(self, number: int, rows: slice, columns: slice) -> Tensor:
        """Return the scores (K, rows, columns) of some pixels of a window."""
        masks, classes = self.logits[number], self.classes[number]
        from_rows, row_matrix = self.vertical.window.dense(rows, masks.device)
        from_columns, column_matrix = self.horizontal.window.dense(columns, masks.device)
        with torch.autocast(masks.device.type, enabled=False):
            part = row_matrix @ (masks[:, from_rows, from_columns] @ column_matrix.T)  # (Q, rows, columns)
            scores = classes @ part.sigmoid_().flatten(1)
        return scores.view(-1, len(row_matrix), len(column_matrix))


class MergedMasks(NamedTuple):
    """Masks and classes of all windows of a batch of images.

    Attributes:
        masks: (B, n, Q, h, w) logits.
        classes: (B, n, K, Q) probabilities.
        vertical: rows of the windows.
        horizontal: columns of the windows.
        rows: from rows of pixels, added up over windows, to those of the image.
        columns: likewise.
    """

    masks: Tensor
    classes: Tensor
    vertical: Placement
    horizontal: Placement
    rows: AxisMap
    columns: AxisMap

    def logit_map(self, image: int, rows: AxisMap, columns: AxisMap) -> MaskMap:
        """Return the map of an image, given the maps to its pixels, made from ``rows`` and ``columns``."""
        return MaskMap(self.masks[image], rows, columns, self.classes[image], self.vertical, self.horizontal)


def merge_masks(
    inputs: Tensor,
    window: tuple[int, int],
    stride: tuple[int, int],
    batch_size: int,
    segment: Callable[[Tensor, list[int]], WindowMasks],
    align_corners: bool = False,
    crop_padding: bool = False,
    even: bool = False,
) -> MergedMasks:
    """Segment the sliding windows of a batch of images into masks and classes.

    Args: as :func:`merge_windows`; ``segment`` returns masks.
    """
    grid = WindowGrid.of(inputs.shape[2:], window, stride, even)
    masks, classes = [], []
    for batch, crops in grid.batches(inputs, batch_size):
        found = segment(crops, [i for i, _, _ in batch])
        dtype = torch.promote_types(found.masks.dtype, torch.float32)
        masks.append(found.masks.to(dtype).contiguous())  # (n, Q, h, w)
        classes.append(found.classes.to(dtype).mT.contiguous())  # (n, K, Q)
    h, w = found.masks.shape[2:]
    rows, columns = grid.to_windows((h, w), found.size, align_corners, crop_padding, dtype)
    to_image = [
        average_windows(length, starts, identity(len(axis), dtype), len(axis)).to_image
        for length, starts, axis in zip(inputs.shape[2:], (grid.ys, grid.xs), (rows, columns), strict=True)
    ]
    shape = (len(inputs), len(grid.ys) * len(grid.xs))
    return MergedMasks(
        _joined(masks).unflatten(0, shape),
        _joined(classes).unflatten(0, shape),
        Placement(grid.ys, rows),
        Placement(grid.xs, columns),
        *to_image,
    )


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
