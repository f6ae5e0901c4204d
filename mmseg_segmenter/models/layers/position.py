"""Absolute position embeddings of a ViT at other grid sizes."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import UserError

Grid = tuple[int, int]


def square_grid(num_tokens: int) -> Grid | None:
    """The (n, n) grid of ``num_tokens`` tokens, or None if there is none."""
    side = math.isqrt(num_tokens)
    return (side, side) if side * side == num_tokens and side > 0 else None


def resize_pos_embed(
    pos_embed: Tensor,
    src_hw: Grid,
    dst_hw: Grid,
    mode: str = 'bicubic',
    num_prefix_tokens: int = 1,
) -> Tensor:
    """Resample the grid part of a position embedding.

    Grids are compared, not token counts: a 4x4 embedding on a 2x8 grid is
    resampled although both have 16 tokens (the official code overlooks this).
    The prefix rows (class and distillation token) are kept as they are. The
    interpolation runs in at least float32 and the dtype is restored.

    Args:
        pos_embed: (1, num_prefix_tokens + h * w, C).
        src_hw: grid (h, w) of ``pos_embed``, in patches.
        dst_hw: wanted grid (h', w'), in patches.
        mode: ``'bicubic'`` (mmseg, timm) or ``'bilinear'`` (official
            Segmenter), both with ``align_corners=False``.
        num_prefix_tokens: rows in front of the grid.

    Returns:
        (1, num_prefix_tokens + h' * w', C) in the dtype of ``pos_embed``.

    Raises:
        ValueError: the number of rows does not fit ``src_hw``.
    """
    expected = num_prefix_tokens + src_hw[0] * src_hw[1]
    if pos_embed.ndim != 3 or pos_embed.shape[1] != expected:
        raise UserError(
            f'pos_embed has shape {tuple(pos_embed.shape)}; expected (1, {expected}, C) for a grid of '
            f'{src_hw[0]}x{src_hw[1]} patches and {num_prefix_tokens} extra token(s)'
        )
    # Under torch.export the size is symbolic: comparing it would bind the program to the sizes that differ (or not).
    # Interpolation to the same size changes nothing, so it is always right.
    if not isinstance(dst_hw[0], torch.SymInt) and src_hw == dst_hw:
        return pos_embed
    prefix, grid = pos_embed[:, :num_prefix_tokens], pos_embed[:, num_prefix_tokens:]
    dtype = grid.dtype if grid.dtype in (torch.float32, torch.float64) else torch.float32
    grid = grid.reshape(1, *src_hw, -1).permute(0, 3, 1, 2).to(dtype)  # (1, C, h, w)
    grid = F.interpolate(grid, size=dst_hw, mode=mode, align_corners=False)
    grid = grid.flatten(2).transpose(1, 2).to(pos_embed.dtype)  # (1, h' * w', C)
    return torch.cat((prefix, grid), dim=1)
