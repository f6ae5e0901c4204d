"""Mean absolute error of binary segmentation."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmseg.registry import METRICS

from ..errors import UserError


@METRICS.register_module()
class MAEMetric(BaseMetric):
    """Compute the mean absolute error between foreground probability and mask, as for salient object detection.

    The error is averaged over the labelled pixels of each image, then over
    images: 0 is perfect, 1 is the worst. mmseg's ``IoUMetric`` has IoU and
    F-measure. Source: Perazzi et al., Saliency Filters (CVPR 2012), section 4.2.

    The metric needs ``seg_logits``: set ``model.test_cfg.return_logits=True``.

    Args:
        ignore_index: label of pixels that do not count.
        collect_device: as in mmengine's ``BaseMetric``.
        prefix: as in mmengine's ``BaseMetric``.
    """

    def __init__(self, ignore_index: int = 255, collect_device: str = 'cpu', prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.ignore_index = ignore_index

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Add the errors of a batch of images.

        Args:
            data_batch: not used.
            data_samples: dicts with ``gt_sem_seg`` (1, H, W) and
                ``seg_logits``: (2, H, W) logits, or the (1, H, W)
                probabilities of mmseg's binary mode.

        Raises:
            UserError: there are no logits, or there are more than two classes.
        """
        for sample in data_samples:
            if 'seg_logits' not in sample:
                raise UserError(
                    'MAEMetric needs logits: set model.test_cfg.return_logits=True. Test-time augmentation (--tta) '
                    'does not return any; remove MAEMetric from test_evaluator for it'
                )
            logits = sample['seg_logits']['data']
            if len(logits) > 2:
                raise UserError(f'MAEMetric: found {len(logits)} classes, expected 2 (background and foreground)')
            probability = logits[0] if len(logits) == 1 else torch.softmax(logits.float(), dim=0)[1]  # (H, W)
            label = sample['gt_sem_seg']['data'].squeeze(0).to(probability.device)  # (H, W)
            valid = label != self.ignore_index
            error = (probability - (label == 1).to(probability)).abs()[valid]
            # One result per image, NaN included: with several processes, mmengine drops the results of images that
            # fill up the last batches by counting.
            self.results.append(error.double().mean().item())

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        """Return the mean over images, NaN if no image has a labelled pixel."""
        known = [error for error in results if not math.isnan(error)]
        return dict(MAE=round(sum(known) / len(known), 4) if known else float('nan'))
