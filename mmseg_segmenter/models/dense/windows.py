"""Sliding windows along one axis of an image."""

import torch

from .axis_map import AxisMap


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where sliding windows begin: every ``stride``, the last one moved inside.

    A length below the window has one window, which is as short. The same in
    mmseg (``slide_inference``) and the official code (``segm/model/utils.py``).
    """
    count = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(i * stride + window, length) - window, 0) for i in range(count)]


def average_windows(length: int, starts: list[int], window: AxisMap, n_in: int) -> tuple[list[int], int, AxisMap]:
    """The mean over windows, and where the inputs of each have to be for it.

    Windows whose inputs are their coordinates can be added up in place, which
    keeps as many inputs as there are coordinates. Others stand one after
    another.

    Args:
        length: of the image.
        starts: first coordinate of each window; together they leave no gap.
        window: from the inputs of a window to its coordinates.
        n_in: inputs of a window.

    Returns:
        The first place of each window's inputs, to which they are to be added;
        how many places there are; the mean, from the places to the image.
    """
    size, taps = window.index.shape
    covered = torch.zeros(length, dtype=torch.long)
    for start in starts:
        covered[start : start + size] += 1
    if window.is_identity(n_in):
        return starts, length, AxisMap(torch.arange(length)[:, None], covered.to(window.weight).reciprocal_()[:, None])
    index = torch.full((length, int(covered.max()), taps), -1)
    weight = window.weight.new_zeros(index.shape)
    seen = torch.zeros_like(covered)
    for i, start in enumerate(starts):
        rows = torch.arange(start, start + size)
        index[rows, seen[rows]] = window.index + i * n_in
        weight[rows, seen[rows]] = window.weight / covered[rows, None]
        seen[rows] += 1
    # Coordinates that fewer windows cover: weight 0, on an input that is used anyway.
    index = torch.where(index < 0, index[:, :1], index)
    places = [i * n_in for i in range(len(starts))]
    return places, len(starts) * n_in, AxisMap(index.flatten(1), weight.flatten(1))
