"""Base class of both decoders: cross-entropy without logits at full size."""

from typing import Any

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import CrossEntropyLoss as MMSegCrossEntropyLoss
from mmseg.structures import SegDataSample
from torch import Tensor

from ...errors import UserError
from ..losses import CrossEntropyLoss, sum_of_weights, upsampled_cross_entropy


def check_num_classes(head: str, kwargs: dict[str, Any]) -> None:
    """Raise an error if a softmax over the classes is not possible; else set ``out_channels``.

    mmseg's binary mode (``out_channels=1`` with a sigmoid) does not work with
    class embeddings. mmseg's own mask head ignores it and, with one class,
    predicts 0 everywhere. ``out_channels`` is set because ``BaseDecodeHead``
    otherwise recommends that mode for two classes.

    Args:
        head: name of the head's class, for the message.
        kwargs: arguments of ``BaseDecodeHead``; changed in place.

    Raises:
        UserError: ``num_classes`` is below 2, or ``out_channels`` differs.
    """
    num_classes, out_channels = kwargs.get('num_classes'), kwargs.get('out_channels')
    if num_classes is None:
        raise UserError(f'{head}: num_classes is not set')
    if num_classes < 2:
        raise UserError(
            f'{head}: num_classes={num_classes}, expected at least 2; for binary segmentation set num_classes=2 '
            '(background and foreground)'
        )
    if out_channels not in (None, num_classes):
        raise UserError(
            f'{head}: out_channels={out_channels} differs from num_classes={num_classes}; leave out_channels out '
            '(for binary segmentation num_classes=2 gives one map for background and one for foreground)'
        )
    kwargs['out_channels'] = num_classes


class TiledLossHead(BaseDecodeHead):
    """Compute cross-entropy tile by tile, without logits at full size.

    Loss, gradient and accuracy are those of ``BaseDecodeHead``, except that a
    pixel counts as correct if its label is one of several equal highest
    logits. ``BaseDecodeHead`` computes all other losses, lists of losses, and
    losses with a pixel sampler.

    Args: as ``BaseDecodeHead``.

    Raises:
        UserError: a loss has weights, but not one per class.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        losses = self.loss_decode if isinstance(self.loss_decode, torch.nn.ModuleList) else [self.loss_decode]
        for loss in losses:
            weights = getattr(loss, 'class_weight', None)
            # Cross-entropy would fail at the first label without a weight, and accept a list that is too long.
            if weights is not None and len(weights) != self.num_classes:
                raise UserError(
                    f'loss_decode.class_weight has {len(weights)} weights, expected one for each of the '
                    f'{self.num_classes} classes'
                )

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: list[SegDataSample]) -> dict[str, Tensor]:
        """Return loss and accuracy.

        Args:
            seg_logits: (B, K, h, w) at patch resolution.
            batch_data_samples: one per image, with ``gt_sem_seg`` (1, H, W).

        Returns:
            The loss under its name, and ``acc_seg`` in percent of valid pixels.
        """
        criterion = self.loss_decode
        if isinstance(criterion, torch.nn.ModuleList) and len(criterion) == 1:
            criterion = criterion[0]
        if not _is_plain_cross_entropy(criterion) or self.sampler is not None:
            return super().loss_by_feat(seg_logits, batch_data_samples)
        labels = self._stack_batch_gt(batch_data_samples).squeeze(1)
        weight = None if criterion.class_weight is None else seg_logits.new_tensor(criterion.class_weight)
        loss, correct = upsampled_cross_entropy(seg_logits, labels, weight, self.ignore_index, self.align_corners)
        valid = labels != self.ignore_index
        eps = torch.finfo(torch.float32).eps
        if getattr(criterion, 'avg_over', 'process') == 'all':
            loss = loss / (criterion.shared_avg_factor() + eps)
        elif criterion.reduction == 'mean':
            loss = loss / (sum_of_weights(labels, valid, weight, criterion.avg_non_ignore).to(loss) + eps)
        # A tensor: with a number, torch would multiply by the reciprocal and round differently from mmseg.
        hundred = torch.full_like(correct, 100, dtype=torch.float32)
        accuracy = (correct.float() + eps) * (hundred / (valid.sum().float() + eps))
        return {criterion.loss_name: criterion.loss_weight * loss, 'acc_seg': accuracy.reshape(1)}


def _is_plain_cross_entropy(criterion: torch.nn.Module) -> bool:
    return (
        type(criterion) in (CrossEntropyLoss, MMSegCrossEntropyLoss)
        and not criterion.use_sigmoid
        and not criterion.use_mask
        and criterion.reduction in ('mean', 'sum')
    )
