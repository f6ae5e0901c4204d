"""A ViT in plain torch and float64, against which conversions are verified.

Each format reads a :class:`PlainViT` from the keys of its files. This shares nothing with the rules of the conversion.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Affine(NamedTuple):
    """Weight and bias of a linear layer or a norm, in float64."""

    weight: Tensor
    bias: Tensor | None


def affine(weights: Mapping[str, Tensor], name: str) -> Affine:
    """Read ``name.weight`` and, if there is one, ``name.bias``."""
    bias = weights.get(f'{name}.bias')
    return Affine(weights[f'{name}.weight'].double(), None if bias is None else bias.double())


def cat_affine(layers: Sequence[Affine]) -> Affine:
    """Concatenate the outputs of linear layers; an absent bias is 0."""
    biases = [torch.zeros_like(layer.weight[:, 0]) if layer.bias is None else layer.bias for layer in layers]
    return Affine(torch.cat([layer.weight for layer in layers]), torch.cat(biases))


def optional(weights: Mapping[str, Tensor], key: str) -> Tensor | None:
    """Read a tensor that a checkpoint may lack."""
    return weights[key].double() if key in weights else None


class PlainBlock(NamedTuple):
    """A transformer block.

    Attributes:
        norm1: norm of the attention branch.
        qkv: projections of queries, keys and values, (3 * C, C).
        proj: output projection.
        norm2: norm of the feed-forward branch.
        up: first linear layer.
        down: last linear layer.
        gate: gate of SwiGLU; None: GELU.
        ls1: layer scale (C,) of the attention branch.
        ls2: layer scale (C,) of the feed-forward branch.
    """

    norm1: Affine
    qkv: Affine
    proj: Affine
    norm2: Affine
    up: Affine
    down: Affine
    gate: Affine | None = None
    ls1: Tensor | None = None
    ls2: Tensor | None = None


class PlainViT(NamedTuple):
    """A ViT.

    Attributes:
        patch: patch embedding, weight (C, channels, P, P).
        prefix: tokens in front of the patches, each (1, n, C).
        pos_embed: (1, rows, C), added to the patches and to the prefix tokens for which there are rows; or None.
        blocks: the blocks.
        norm: final norm.
        eps: of all norms.
        periods: (d / 4,) periods of rotary position embedding, or None.
    """

    patch: Affine
    prefix: list[Tensor]
    pos_embed: Tensor | None
    blocks: list[PlainBlock]
    norm: Affine
    eps: float
    periods: Tensor | None = None

    def tokens(self, image: Tensor, num_heads: int) -> Tensor:
        """Return the (B, prefix + h * w, C) tokens after the final norm.

        Args:
            image: (B, channels, H, W) in float64, of the size that ``pos_embed`` is made for.
            num_heads: attention heads.
        """
        x, angles = self.embedded(image)
        return norm(run_blocks(x, self.blocks, num_heads, self.eps, angles), self.norm, self.eps)

    def embedded(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the (B, prefix + h * w, C) tokens in front of the blocks, and the angles of the patches."""
        x = F.conv2d(image, *self.patch, stride=self.patch.weight.shape[-1])  # (B, C, h, w)
        grid = x.shape[2:]
        x = torch.cat([*(token.double().expand(len(x), -1, -1) for token in self.prefix), x.flatten(2).mT], 1)
        if self.pos_embed is not None:
            num_patches = grid[0] * grid[1]
            rows = self.pos_embed.double()
            num_prefix, num_rows = x.shape[1] - num_patches, rows.shape[1] - num_patches
            without = torch.zeros(1, num_prefix - num_rows, rows.shape[2], dtype=torch.float64)
            # Prefix tokens without a row are the last of them.
            x = x + torch.cat((rows[:, :num_rows], without, rows[:, num_rows:]), 1)
        return x, None if self.periods is None else rope_angles(self.periods.double(), grid[0], grid[1])


def linear(x: Tensor, layer: Affine) -> Tensor:
    """Apply a linear layer."""
    return F.linear(x, layer.weight, layer.bias)


def norm(x: Tensor, layer: Affine, eps: float) -> Tensor:
    """Apply a LayerNorm."""
    return F.layer_norm(x, x.shape[-1:], layer.weight, layer.bias, eps)


def run_blocks(
    x: Tensor, blocks: Sequence[PlainBlock], num_heads: int, eps: float, angles: Tensor | None = None
) -> Tensor:
    """Run (B, N, C) tokens through blocks.

    Args:
        x: (B, N, C) tokens.
        blocks: the blocks.
        num_heads: attention heads.
        eps: of the norms.
        angles: (n, d / 2) rotations of the last n tokens.
    """
    for block in blocks:
        qkv = linear(norm(x, block.norm1, eps), block.qkv).unflatten(-1, (3, num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, d)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        y = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
        y = linear(y.transpose(1, 2).flatten(2), block.proj)
        x = x + (y if block.ls1 is None else block.ls1 * y)
        y = norm(x, block.norm2, eps)
        y = F.gelu(linear(y, block.up)) if block.gate is None else F.silu(linear(y, block.gate)) * linear(y, block.up)
        y = linear(y, block.down)
        x = x + (y if block.ls2 is None else block.ls2 * y)
    return x


def rope_angles(periods: Tensor, h: int, w: int) -> Tensor:
    """Return the (h * w, d / 2) angles of DINOv3: 2 pi coordinate / period, for rows, then for columns."""
    angles = []
    for i in range(h):
        for j in range(w):
            y, x = 2 * (i + 0.5) / h - 1, 2 * (j + 0.5) / w - 1
            angles.append(torch.cat((2 * math.pi * y / periods, 2 * math.pi * x / periods)))
    return torch.stack(angles)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate dimensions i and i + d / 2 of the last tokens by angle i, as complex numbers."""
    num_prefix, half = x.shape[2] - len(angles), x.shape[3] // 2
    patches = torch.complex(x[:, :, num_prefix:, :half], x[:, :, num_prefix:, half:])
    patches = patches * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((x[:, :, :num_prefix], torch.cat((patches.real, patches.imag), -1)), 2)
