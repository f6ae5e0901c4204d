"""Parts that the reference forward passes of several formats share."""

import math
from collections.abc import Mapping
from itertools import count, takewhile
from typing import NamedTuple

import torch
from torch import Tensor


class SourceSizes(NamedTuple):
    """Sizes of a ViT, read from the source's tensors.

    They are read independently of :class:`mmseg_segmenter.checkpoints.architecture.Architecture`, so that a wrong
    reading of one of them shows when both models run.

    Attributes:
        grid: rows and columns of patches that the position embedding is made for.
        patch_size: side of a patch in pixels.
        in_channels: channels of the image.
        embed_dims: width C.
        num_layers: depth.
        feedforward_channels: hidden width of the feed-forward networks.
        with_dist_token: there is a distillation token (DeiT).
        qkv_bias: there are biases of queries, keys and values.
    """

    grid: tuple[int, int]
    patch_size: int
    in_channels: int
    embed_dims: int
    num_layers: int
    feedforward_channels: int
    with_dist_token: bool
    qkv_bias: bool

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels that the position embedding is made for."""
        return self.grid[0] * self.patch_size, self.grid[1] * self.patch_size


def num_unembedded(num_rows: int, num_prefix: int) -> int:
    """Return how many prefix tokens have no row in a position embedding: all of them or none.

    The grid is square where that is possible. A grid that is not square is taken for one row.
    """
    with_prefix, without = num_rows - num_prefix, num_rows
    return num_prefix if _is_square(without) and not _is_square(with_prefix) else 0


def grid_of(num_patches: int) -> tuple[int, int]:
    """Return the square grid of so many patches, or one row of them if there is none."""
    side = math.isqrt(num_patches)
    return (side, side) if _is_square(num_patches) else (1, num_patches)


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


def depth(weights: Mapping[str, Tensor], key: str) -> int:
    """Count the blocks that have ``key``, a pattern with ``{}`` for the number of the block."""
    return sum(1 for _ in takewhile(lambda i: key.format(i) in weights, count()))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return scaled dot-product attention. All tensors are (B, N, H, d): H heads of d channels."""
    weights = torch.einsum('bnhd,bmhd->bhnm', q, k).mul(q.shape[-1] ** -0.5).softmax(-1)
    return torch.einsum('bhnm,bmhd->bnhd', weights, v)
