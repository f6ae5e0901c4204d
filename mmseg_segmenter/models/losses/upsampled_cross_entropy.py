"""Cross-entropy of upsampled logits, computed tile by tile."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..dense.axis_map import linear_resize
from ..dense.logit_map import LogitMap


def upsampled_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    class_weight: Tensor | None = None,
    ignore_index: int = 255,
    align_corners: bool = False,
) -> tuple[Tensor, Tensor]:
    """Upsample logits bilinearly to the size of the labels, and sum the cross-entropy over pixels.

    Equals ``F.interpolate`` followed by ``F.cross_entropy(reduction='sum')``,
    and can be differentiated once. The gradient is computed with the loss,
    tile by tile, so logits at full size and their gradient are never stored.
    Sums are computed in float32 or wider, under autocast too.

    Args:
        logits: (B, K, h, w) of a head.
        labels: (B, H, W) int64, 0 to K - 1 or ``ignore_index``.
        class_weight: (K,) weight of each class.
        ignore_index: label of pixels that do not count.
        align_corners: as ``F.interpolate``.

    Returns:
        The sum, and the number of pixels whose label has the highest logit.
    """
    with_gradient = torch.is_grad_enabled() and logits.requires_grad
    return _UpsampledCrossEntropy.apply(  # type: ignore[no-untyped-call]
        logits, labels, class_weight, ignore_index, align_corners, with_gradient
    )


class _UpsampledCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        class_weight: Tensor | None,
        ignore_index: int,
        align_corners: bool,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        (B, _, h, w), (_, H, W) = logits.shape, labels.shape
        rows, columns = linear_resize(h, H, align_corners, dtype), linear_resize(w, W, align_corners, dtype)
        source = logits.to(dtype).permute(0, 2, 1, 3)  # (B, h, K, w)
        gradient = torch.zeros_like(source) if with_gradient else None
        weight = None if class_weight is None else class_weight.to(dtype)
        losses, hits = [], []
        with torch.autocast(logits.device.type, enabled=False):
            for i in range(B):
                logit_map = LogitMap(source[i], rows, columns)
                for tile in logit_map.tiles():
                    scores = logit_map.tile(*tile)
                    loss, correct = _tile_loss(scores, labels[i][tile], weight, ignore_index, gradient is not None)
                    losses.append(loss)
                    hits.append(correct)
                    if gradient is not None:  # scores now hold their gradient
                        logit_map.add_tile_gradient(gradient[i], scores, *tile)
        total, correct = torch.stack(losses).sum(), torch.stack(hits).sum()
        ctx.mark_non_differentiable(correct)
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        return total, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_loss).permute(0, 2, 1, 3).to(ctx.dtype), None, None, None, None, None


def _tile_loss(
    scores: Tensor, labels: Tensor, class_weight: Tensor | None, ignore_index: int, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Return the sum of the cross-entropy, and the number of correct pixels, of a tile.

    Args:
        scores: (r, K, c) logits; overwritten, with their gradient if
            ``with_gradient``.
        labels: (r, c).
        class_weight: (K,).
        ignore_index: label of pixels that do not count.
        with_gradient: compute the gradient.
    """
    valid = labels != ignore_index
    labels = labels.where(valid, 0)
    highest = scores.amax(dim=1)
    at_label = scores.gather(1, labels[:, None])[:, 0]
    hits = ((at_label >= highest) & valid).sum()
    exponentials = scores.sub_(highest[:, None]).exp_()
    normaliser = exponentials.sum(dim=1)
    weight = valid.to(scores) if class_weight is None else class_weight[labels] * valid
    loss = ((normaliser.log() + highest - at_label) * weight).sum()
    if with_gradient:
        exponentials.mul_((weight / normaliser)[:, None]).scatter_add_(1, labels[:, None], -weight[:, None])
    return loss, hits
