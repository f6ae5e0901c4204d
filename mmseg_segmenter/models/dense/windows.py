"""Sliding windows: cut images into windows, and merge the logits of the windows.

Shapes: B images, n windows of a batch, K classes, H x W pixels, h x w logits.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from .axis_map import AxisMap, linear_resize
from .logit_map import LogitMap


class WindowLogits(NamedTuple):
    """Logits of a batch of windows.

    Attributes:
        logits: (n, K, h, w).
        size: height and width in pixels that they cover, padding included.
    """

    logits: Tensor
    size: tuple[int, int]


class MergedLogits(NamedTuple):
    """Logits of all windows of a batch of images.

    Attributes:
        logits: (B, h, K, w), the windows beside and below each other, or
            added up where they overlap if a logit is a pixel.
        rows: from h to the rows of the image, the mean over windows included.
        columns: from w to the columns of the image.
    """

    logits: Tensor
    rows: AxisMap
    columns: AxisMap

    def logit_map(self, image: int, rows: AxisMap, columns: AxisMap) -> LogitMap:
        """Return the map of an image, given the maps to its pixels, made from ``rows`` and ``columns``."""
        return LogitMap(self.logits[image], rows, columns)


class WindowGrid(NamedTuple):
    """Windows of an image.

    Attributes:
        ys: first row of each row of windows.
        xs: first column of each column of windows.
        size: height and width of a window.
    """

    ys: list[int]
    xs: list[int]
    size: tuple[int, int]

    @classmethod
    def of(
        cls, image: Sequence[int], window: tuple[int, int], stride: tuple[int, int], even: bool = False
    ) -> 'WindowGrid':
        """Return the windows of an image of a height and width; smaller images have one of their own size."""
        ys, xs = (window_starts(*axis, even) for axis in zip(image, window, stride, strict=True))
        return cls(ys, xs, (min(window[0], image[0]), min(window[1], image[1])))

    def batches(self, inputs: Tensor, batch_size: int) -> Iterator[tuple[list[tuple[int, int, int]], Tensor]]:
        """Yield (image, row, column) of some windows, and the windows (n, C, height, width) of (B, C, H, W) images."""
        height, width = self.size
        windows = list(product(range(inputs.shape[0]), range(len(self.ys)), range(len(self.xs))))
        for first in range(0, len(windows), batch_size):
            batch = windows[first : first + batch_size]
            corners = [(i, self.ys[y], self.xs[x]) for i, y, x in batch]
            yield batch, torch.stack([inputs[i, :, y : y + height, x : x + width] for i, y, x in corners])

    def to_windows(
        self,
        logits: tuple[int, int],
        covered: tuple[int, int],
        align_corners: bool,
        crop_padding: bool,
        dtype: torch.dtype,
    ) -> tuple[AxisMap, AxisMap]:
        """Return the maps from (h, w) logits of a window to its rows and columns.

        Args:
            logits: h and w.
            covered: height and width in pixels that they cover.
            align_corners: as :func:`merge_windows`.
            crop_padding: as :func:`merge_windows`.
            dtype: of the weights.
        """
        rows, columns = (
            linear_resize(cells, pixels, align_corners, dtype)[: kept if crop_padding else pixels]
            for cells, pixels, kept in zip(logits, covered, self.size, strict=True)
        )
        return rows, columns


class AxisWindows(NamedTuple):
    """Logits of all windows along one axis.

    Attributes:
        offsets: position of the first logit of each window.
        length: number of positions.
        to_image: from the positions to the coordinates of the image, the mean
            over windows included.
    """

    offsets: list[int]
    length: int
    to_image: AxisMap


def merge_windows(
    inputs: Tensor,
    window: tuple[int, int],
    stride: tuple[int, int],
    batch_size: int,
    segment: Callable[[Tensor, list[int]], WindowLogits],
    align_corners: bool = False,
    crop_padding: bool = False,
    even: bool = False,
) -> MergedLogits:
    """Segment the sliding windows of a batch of images.

    Args:
        inputs: (B, C, H, W) images.
        window: height and width of a window. Smaller images have one window
            of their own size.
        stride: vertical and horizontal distance of windows.
        batch_size: number of windows that are segmented at once.
        segment: returns the logits of windows (n, C, height, width), given
            these and the number of each one's image.
        align_corners: as ``F.interpolate``, for upsampling the logits.
        crop_padding: ``segment`` pads at the bottom and the right; remove
            what lies outside the window after upsampling.
        even: as :func:`window_starts`.
    """
    grid = WindowGrid.of(inputs.shape[2:], window, stride, even)
    merged = None
    for batch, crops in grid.batches(inputs, batch_size):
        logits, covered = segment(crops, [i for i, _, _ in batch])
        _, K, h, w = logits.shape
        if merged is None:
            dtype = torch.promote_types(logits.dtype, torch.float32)  # sums are at least float32, under autocast too
            to_rows, to_columns = grid.to_windows((h, w), covered, align_corners, crop_padding, dtype)
            rows = average_windows(inputs.shape[2], grid.ys, to_rows, h)
            columns = average_windows(inputs.shape[3], grid.xs, to_columns, w)
            merged = logits.new_zeros(len(inputs), rows.length, K, columns.length, dtype=dtype)
        for one, (i, y, x) in zip(logits, batch, strict=True):  # one: (K, h, w)
            top, left = rows.offsets[y], columns.offsets[x]
            merged[i, top : top + h, :, left : left + w] += one.transpose(0, 1)
    assert merged is not None
    return MergedLogits(merged, rows.to_image, columns.to_image)


def window_starts(length: int, window: int, stride: int, even: bool = False) -> list[int]:
    """Return the first coordinate of each window along one axis.

    Windows start every ``stride``. The last one is moved back to end inside
    the image. An image smaller than the window has one window. The same in
    mmseg (``slide_inference``) and the official code (``segm/model/utils.py``).

    With ``even``, the same number of windows is evenly spaced, as in EoMT's
    code (``training/lightning_module.py``, ``window_imgs_semantic``).
    """
    count = max(length - window + stride - 1, 0) // stride + 1
    if even and count > 1:
        overlap = (count * window - length) / (count - 1)  # in floats, as EoMT's code
        return [*(int(i * (window - overlap)) for i in range(count - 1)), length - window]
    return [max(min(i * stride + window, length) - window, 0) for i in range(count)]


def average_windows(length: int, starts: list[int], window: AxisMap, n_in: int) -> AxisWindows:
    """Place the logits of windows along one axis, and average the windows.

    If the logits of a window are its pixels, windows are added up in place,
    and there are as many positions as pixels. Otherwise the logits of the
    windows are placed one after another.

    Args:
        length: length of the image. A single window may have another length,
            which then counts (mmseg stretches it).
        starts: first coordinate of each window. Windows leave no gaps.
        window: from the logits of a window to its pixels.
        n_in: number of logits of a window.
    """
    size, taps = window.index.shape
    if len(starts) == 1:
        length = size
    num_windows = torch.zeros(length, dtype=torch.long)  # at each pixel
    for start in starts:
        num_windows[start : start + size] += 1
    if window.is_identity(n_in):
        share = num_windows.to(window.weight).reciprocal_()
        return AxisWindows(starts, length, AxisMap(torch.arange(length)[:, None], share[:, None]))
    # (pixel, window over it, tap): which logits a pixel is made of
    index = torch.full((length, int(num_windows.max()), taps), -1)
    weight = window.weight.new_zeros(index.shape)
    seen = torch.zeros_like(num_windows)
    for i, start in enumerate(starts):
        pixels = torch.arange(start, start + size)
        index[pixels, seen[pixels]] = window.index + i * n_in
        weight[pixels, seen[pixels]] = window.weight / num_windows[pixels, None]
        seen[pixels] += 1
    # Pixels under fewer windows than others get weight 0 for a logit that they use anyway.
    index = torch.where(index < 0, index[:, :1], index)
    offsets = [i * n_in for i in range(len(starts))]
    return AxisWindows(offsets, len(starts) * n_in, AxisMap(index.flatten(1), weight.flatten(1)))
