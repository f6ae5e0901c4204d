"""How far the heads of an encoder look: mean attention distance."""

from typing import Any

import torch
from torch import Tensor

from .features import patch_grid
from .layers import encoder_stack


def attention_distance(model: Any, inputs: Tensor) -> Tensor:
    """Return the mean distance over which each head of the encoder attends, in pixels of the inputs.

    The distance between the centres of two patches, averaged over all pairs
    with the attention as weight. Attention to prefix tokens is left out: the
    weights of a patch over all patches add up to 1. Compare with
    :func:`uniform_distance`. Source: ViT (ICLR 2021), figure 7; Segmenter
    (ICCV 2021), size of the attended area.

    Args:
        model: as :func:`encoder_attention`.
        inputs: as :func:`encoder_attention`.

    Returns:
        (B, layers, H).

    Raises:
        UserError: a backbone without self-attention.
    """
    stack = encoder_stack(model, inputs)
    centres = _centres(patch_grid(model, inputs)).to(inputs)  # (n, 2)
    n = len(centres)
    distances = []
    for attention in stack.record(0, len(stack.layers) - 1):
        prefix = attention.tokens.shape[1] - n
        total = torch.zeros(len(inputs), attention.layer.num_heads, device=inputs.device)
        for rows, weights in attention.chunks(first=prefix):
            apart = torch.cdist(centres[rows.start - prefix : rows.stop - prefix], centres).to(weights)  # (rows, n)
            weights = weights[..., prefix:]
            total += (weights * apart).sum(dim=-1).div(weights.sum(dim=-1)).sum(dim=-1)
        distances.append(total / n)
    return torch.stack(distances, dim=1) * model.backbone.patch_size


def uniform_distance(grid: tuple[int, int], patch_size: int) -> float:
    """Return the mean distance in pixels between all pairs of patches: that of a head with uniform attention."""
    centres = _centres(grid)
    return torch.stack([torch.cdist(one[None], centres).mean() for one in centres]).mean().item() * patch_size


def _centres(grid: tuple[int, int]) -> Tensor:
    """Return the coordinates (h * w, 2) of the patches of a grid, in patches."""
    return torch.cartesian_prod(*(torch.arange(side, dtype=torch.float32) for side in grid)).reshape(-1, 2)
