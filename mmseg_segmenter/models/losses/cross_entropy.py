"""mmseg's cross-entropy, with a choice of the pixels that it averages over."""

from typing import Any, Literal

from mmseg.models.losses import CrossEntropyLoss as MMSegCrossEntropyLoss
from mmseg.registry import MODELS
from torch import Tensor

from ...errors import UserError


@MODELS.register_module(force=True)
class CrossEntropyLoss(MMSegCrossEntropyLoss):
    """Compute mmseg's cross-entropy; optionally average it over the labelled pixels of all processes.

    Args:
        avg_over: ``'process'`` averages over the batch of each process, as mmseg and the authors' code do. If
            processes have different numbers of labelled pixels, a pixel then counts more where there are few.
            ``'all'`` averages over the labelled pixels of all processes and of all batches that are accumulated to one
            update, which equals one process with the whole batch. It needs
            :class:`~mmseg_segmenter.engine.LabelledPixelsHook`.
        args: as mmseg's ``CrossEntropyLoss``.
        kwargs: as mmseg's ``CrossEntropyLoss``.

    Attributes:
        avg_factor: what the hook sets for ``avg_over='all'``: what the sum of the losses of a batch is divided by.

    Raises:
        UserError: ``avg_over`` is unknown, or does not fit the other arguments.
    """

    def __init__(self, *args: Any, avg_over: Literal['process', 'all'] = 'process', **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if avg_over not in ('process', 'all'):
            raise UserError(f"CrossEntropyLoss: avg_over={avg_over!r}, expected 'process' or 'all'")
        if avg_over == 'all' and (
            self.use_sigmoid or self.use_mask or self.reduction != 'mean' or not self.avg_non_ignore
        ):
            raise UserError(
                "CrossEntropyLoss: avg_over='all' needs avg_non_ignore=True, reduction='mean' and neither use_sigmoid "
                'nor use_mask'
            )
        self.avg_over = avg_over
        self.avg_factor: float | None = None

    def forward(self, cls_score: Tensor, label: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss; arguments as those of mmseg's ``CrossEntropyLoss``."""
        if self.avg_over == 'all':
            kwargs['avg_factor'] = self.shared_avg_factor()
        loss: Tensor = super().forward(cls_score, label, *args, **kwargs)
        return loss

    def shared_avg_factor(self) -> float:
        """Return ``avg_factor``.

        Raises:
            UserError: no hook has set it.
        """
        if self.avg_factor is None:
            raise UserError(
                "CrossEntropyLoss: avg_over='all' needs the hook that counts the pixels: "
                "custom_hooks = [dict(type='LabelledPixelsHook')]"
            )
        return self.avg_factor


def sum_of_weights(labels: Tensor, valid: Tensor, class_weight: Tensor | None, avg_non_ignore: bool) -> Tensor:
    """Return what a sum of losses is divided by: the number of pixels, of valid pixels, or their class weights.

    A pixel with an ignored label that is not a class has weight 0 (mmseg fails on it).

    Args:
        labels: integers of any shape.
        valid: whether a pixel counts, as ``labels``.
        class_weight: (K,).
        avg_non_ignore: count valid pixels only.
    """
    if class_weight is None:
        return (valid if avg_non_ignore else valid.new_ones(valid.shape)).sum()
    counted = (labels >= 0) & (labels < len(class_weight))
    if avg_non_ignore:
        counted &= valid
    return (class_weight[labels.where(counted, 0)] * counted).sum()
