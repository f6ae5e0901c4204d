"""Rotary position embedding of queries and keys."""

import math
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import UserError

# Grids whose angles are kept: those of a few image sizes.
_CACHE_SIZE = 8


class Rope(NamedTuple):
    """Sine and cosine of the angles of each patch token.

    Attributes:
        sin: (n, d / 2) for n patches and heads of width d. Dimensions i and
            i + d / 2 of a head rotate together, by angle i.
        cos: (n, d / 2).
    """

    sin: Tensor
    cos: Tensor


class RotaryEmbedding(nn.Module):
    """Angles by which DINOv3 rotates the queries and keys of the patches.

    A patch at row i and column j of an (h, w) grid has the coordinates
    (i + 0.5) / h and (j + 0.5) / w, each mapped to [-1, 1]. Its angles are
    ``2 * pi * coordinate / period``, first for the row, then for the column.
    The periods are a buffer, since those of released models are rounded to
    bfloat16. Sources: RoFormer (arXiv 2104.09864), DINOv3 (arXiv 2508.10104)
    section 3.2.

    Args:
        head_dims: width d of a head, a multiple of 4.
        base: ratio between the period that follows the longest, and the
            shortest: ``periods = base ** (2 * arange(d / 4) / (d / 2))``.
        rescale: in training, multiply all coordinates by one factor, drawn
            log-uniformly from [1 / rescale, rescale] for each batch. None
            does not.

    Raises:
        UserError: an argument is out of range.
    """

    def __init__(self, head_dims: int, base: float = 100.0, rescale: float | None = 2.0) -> None:
        super().__init__()
        if head_dims % 4:
            raise UserError(f'rope: heads have width {head_dims} (embed_dims / num_heads); expected a multiple of 4')
        if not base > 0:
            raise UserError(f'rope.base={base}; expected a positive number')
        if rescale is not None and not rescale >= 1:
            raise UserError(f'rope.rescale={rescale}; expected None or a number of at least 1')
        self.rescale = rescale
        exponents = 2 * torch.arange(head_dims // 4, dtype=torch.float32) / (head_dims // 2)
        self.periods: Tensor
        self.register_buffer('periods', base**exponents)
        # Grid -> periods, their version when it was computed, and the angles.
        self._cache: OrderedDict[tuple[int, int], tuple[Tensor, int, Rope]] = OrderedDict()

    def forward(self, grid: tuple[int, int]) -> Rope:
        """Return the angles of the patches of an (h, w) grid, row by row.

        Computed in float32, or in float64 if the module was converted to it.
        """
        if torch.compiler.is_compiling() or (self.training and self.rescale):
            return self._rope(grid)
        periods, version, rope = self._cache.get(grid, (None, None, None))
        # Another dtype or device replaces the buffer. Loading a checkpoint changes it in place, and its version.
        if rope is None or periods is not self.periods or version != self.periods._version:
            with torch.inference_mode(False):  # usable in training later
                rope = self._rope(grid)
            self._cache[grid] = self.periods, self.periods._version, rope
            if len(self._cache) > _CACHE_SIZE:
                self._cache.popitem(last=False)
        return rope

    def _rope(self, grid: tuple[int, int]) -> Rope:
        periods = self.periods if self.periods.dtype == torch.float64 else self.periods.float()
        rows, columns = (
            2 * (torch.arange(side, dtype=periods.dtype, device=periods.device) + 0.5) / side - 1 for side in grid
        )
        if self.training and self.rescale:
            limit = math.log(self.rescale)
            factor = torch.empty((), dtype=periods.dtype, device=periods.device).uniform_(-limit, limit).exp()
            rows, columns = rows * factor, columns * factor
        frequencies = 2 * math.pi / periods  # (d / 4,)
        h, w = grid
        angles = torch.cat(
            (
                (rows[:, None] * frequencies)[:, None].expand(h, w, -1),
                (columns[:, None] * frequencies)[None].expand(h, w, -1),
            ),
            dim=-1,
        ).flatten(0, 1)  # (h * w, d / 2)
        return Rope(angles.sin(), angles.cos())


def apply_rope(x: Tensor, rope: Rope) -> Tensor:
    """Rotate the last n of N tokens, and keep the tokens in front of them.

    Computed in the wider of the two dtypes; the result has that of the input.

    Args:
        x: (..., N, d) queries or keys.
        rope: angles of the last n tokens.
    """
    if not (torch.compiler.is_compiling() or torch._C._get_tracing_state()):
        result: Tensor = _Rotate.apply(x, rope.sin, rope.cos)  # type: ignore[no-untyped-call]
        return result
    # A compiler fuses the plain formula, and an exporter knows no autograd function.
    num_prefix = x.shape[-2] - rope.sin.shape[0]
    first, second = x[..., num_prefix:, :].chunk(2, dim=-1)
    rotated = torch.cat((first * rope.cos - second * rope.sin, second * rope.cos + first * rope.sin), dim=-1)
    return torch.cat((x[..., :num_prefix, :], rotated.to(x.dtype)), dim=-2)


class _Rotate(torch.autograd.Function):
    """:func:`apply_rope` without intermediate tensors, in 4 passes instead of 8. Only the angles are saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        ctx.save_for_backward(sin, cos)
        return _rotate(x, sin, cos)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        sin, cos = ctx.saved_tensors
        # The transpose of a rotation.
        return _Rotate.apply(grad, -sin, cos), None, None  # type: ignore[no-untyped-call]


def _rotate(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    num_prefix = x.shape[-2] - sin.shape[0]
    out = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, sin.dtype), device=x.device)
    out[..., :num_prefix, :] = x[..., :num_prefix, :]
    first, second = x[..., num_prefix:, :].chunk(2, dim=-1)
    out_first, out_second = out[..., num_prefix:, :].chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first)
    torch.addcmul(out_first, second, sin, value=-1, out=out_first)
    torch.mul(second, cos, out=out_second)
    torch.addcmul(out_second, first, sin, out=out_second)
    return out.to(x.dtype)
