"""Rotary position embedding of queries and keys."""

from typing import NamedTuple

import torch
from torch import Tensor


class Rope(NamedTuple):
    """Sine and cosine of the angle of each patch token.

    Attributes:
        sin: (n, d) for n patches and heads of width d. The two halves of a
            row are equal, because dimensions i and i + d / 2 rotate together.
        cos: (n, d).
    """

    sin: Tensor
    cos: Tensor


def apply_rope(x_BHNd: Tensor, rope: Rope) -> Tensor:
    """Rotate the last n of N tokens, and keep the tokens in front of them.

    Computed in the wider of the two dtypes; the result has that of the input.

    Args:
        x_BHNd: (B, H, N, d) queries or keys.
        rope: angles of the last n tokens.
    """
    num_prefix = x_BHNd.shape[2] - rope.sin.shape[0]
    prefix, patches = x_BHNd[:, :, :num_prefix], x_BHNd[:, :, num_prefix:]
    first, second = patches.chunk(2, dim=-1)
    rotated = patches * rope.cos + torch.cat((-second, first), dim=-1) * rope.sin
    return torch.cat((prefix, rotated.to(prefix.dtype)), dim=2)
