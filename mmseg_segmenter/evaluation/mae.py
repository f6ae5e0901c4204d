"""Mean absolute error of binary segmentation."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmseg.registry import METRICS

from ..errors import UserError


@METRICS.register_module()
class MAEMetric(BaseMetric):
    """Mean absolute error between the foreground probability and the mask, as for salient object detection.

    The mean over the labelled pixels of an image, then over images; 0 is
    perfect, 1 is all wrong. IoU and F-measure are mmseg's ``IoUMetric``.
    Source: Perazzi et al., Saliency Filters (CVPR 2012), section 4.2.

    Needs ``seg_logits`` in the results: ``model.test_cfg.return_logits=True``.

    Args:
        ignore_index: label of pixels that do not count.
        collect_device: as mmengine's ``BaseMetric``.
        prefix: as mmengine's ``BaseMetric``.
    """

    def __init__(self, ignore_index: int = 255, collect_device: str = 'cpu', prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.ignore_index = ignore_index

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Add a batch.

        Args:
            data_batch: not used.
            data_samples: with ``seg_logits`` (2, H, W), or (1, H, W)
                probabilities as mmseg's binary mode gives, and ``gt_sem_seg``
                (1, H, W).

        Raises:
            ValueError: no logits, or not of two classes.
        """
        for sample in data_samples:
            if 'seg_logits' not in sample:
                raise UserError(
                    'MAEMetric needs the logits: set model.test_cfg.return_logits=True (they are not to be had with '
                    '--tta; leave MAEMetric out of test_evaluator there)'
                )
            logits = sample['seg_logits']['data']
            if len(logits) > 2:
                raise UserError(f'MAEMetric: found {len(logits)} classes, expected 2 (background and foreground)')
            probability = logits[0] if len(logits) == 1 else torch.softmax(logits.float(), dim=0)[1]
            label = sample['gt_sem_seg']['data'].squeeze(0).to(probability.device)
            valid = label != self.ignore_index
            if valid.any():
                error = (probability - (label == 1).to(probability)).abs()[valid]
                self.results.append(error.double().mean().item())

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        """The mean over images, ``nan`` if none has a labelled pixel."""
        return dict(MAE=round(sum(results) / len(results), 4) if results else float('nan'))
