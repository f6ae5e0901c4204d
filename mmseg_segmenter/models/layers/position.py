"""Resize the position embedding of a ViT."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import UserError

Grid = tuple[int, int]


def square_grid(num_tokens: int) -> Grid | None:
    """Return the grid (n, n) that has ``num_tokens`` cells, or None."""
    side = math.isqrt(num_tokens)
    return (side, side) if side * side == num_tokens and side > 0 else None


def resize_pos_embed(
    pos_embed: Tensor,
    src_hw: Grid,
    dst_hw: Grid,
    mode: str = 'bicubic',
    num_prefix_tokens: int = 1,
    offset: float = 0.0,
    antialias: bool = False,
) -> Tensor:
    """Resize the position embedding of the patches to another grid.

    Grids are compared, not numbers of tokens: a 4x4 embedding is resized for
    a 2x8 grid, although both have 16 patches. (The official code does not.)
    The rows of prefix tokens are kept. The interpolation is computed in
    float32 or wider.

    Args:
        pos_embed: (1, num_prefix_tokens + h * w, C).
        src_hw: grid (h, w) of ``pos_embed``, in patches.
        dst_hw: target grid (h', w'), in patches.
        mode: ``'bicubic'`` (mmseg, timm) or ``'bilinear'`` (official
            Segmenter), both with ``align_corners=False``.
        num_prefix_tokens: number of rows in front of those of the patches.
        offset: added to h' and w' in the scale of the interpolation, but not
            in the size of the result. DINOv2 without registers uses 0.1.
        antialias: filter when the grid becomes smaller.

    Returns:
        (1, num_prefix_tokens + h' * w', C) in the dtype of ``pos_embed``.

    Raises:
        UserError: the number of rows does not fit ``src_hw``; or a graph for any size is made with an ``offset``,
            which would have to know whether a size is that of ``src_hw``.
    """
    expected = num_prefix_tokens + src_hw[0] * src_hw[1]
    if pos_embed.ndim != 3 or pos_embed.shape[1] != expected:
        raise UserError(
            f'pos_embed has shape {tuple(pos_embed.shape)}; expected (1, {expected}, C) for a grid of '
            f'{src_hw[0]}x{src_hw[1]} patches and {num_prefix_tokens} prefix token(s)'
        )
    # torch.export makes the target size symbolic. Comparing it would restrict the program to other sizes, or to the
    # same one. Interpolating to the same size changes nothing, so it can always run.
    if not isinstance(dst_hw[0], torch.SymInt) and src_hw == dst_hw:
        return pos_embed
    prefix, grid = pos_embed[:, :num_prefix_tokens], pos_embed[:, num_prefix_tokens:]
    dtype = grid.dtype if grid.dtype in (torch.float32, torch.float64) else torch.float32
    grid = grid.reshape(1, *src_hw, -1).permute(0, 3, 1, 2).to(dtype)  # (1, C, h, w)
    if offset and isinstance(dst_hw[0], torch.SymInt):
        raise UserError(f'interpolate_offset={offset:g} leaves the own grid of the position embedding as it is')
    if offset:
        scales = tuple((dst + offset) / src for dst, src in zip(dst_hw, src_hw, strict=True))
        grid = F.interpolate(grid, scale_factor=scales, mode=mode, align_corners=False, antialias=antialias)
    else:
        grid = F.interpolate(grid, size=dst_hw, mode=mode, align_corners=False, antialias=antialias)
    grid = grid.flatten(2).transpose(1, 2).to(pos_embed.dtype)  # (1, h' * w', C)
    return torch.cat((prefix, grid), dim=1)
