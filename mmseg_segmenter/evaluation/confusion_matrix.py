"""Confusion matrix, and the scores that follow from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmseg.registry import METRICS
from torch import Tensor

from ..errors import UserError
from ..labels import check_labels


@METRICS.register_module()
class ConfusionMatrix(BaseMetric):
    """Compute the confusion matrix of a dataset, and ``aAcc``, ``mIoU`` and ``mAcc`` in percent.

    The scores are those of mmseg's ``IoUMetric``. Memory grows by 16 bytes per
    image and non-zero cell of its matrix.

    Args:
        out: PNG to write at the end, with tables beside it: see
            :func:`~mmseg_segmenter.evaluation.report.write_report`. None
            writes nothing.
        sort: order of the table, see ``write_report``.
        ignore_index: label of pixels that do not count.
        collect_device: as in mmengine's ``BaseMetric``.
        prefix: as in mmengine's ``BaseMetric``.

    Raises:
        UserError: ``out`` or ``sort`` is not valid.
    """

    default_prefix = ''  # without one, BaseMetric warns

    def __init__(
        self,
        out: str | None = None,
        sort: str = 'class',
        ignore_index: int = 255,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if out is not None:
            from .report import check_arguments

            check_arguments(out, sort)  # now, because write_report runs after hours of testing
        self.out = out
        self.sort = sort
        self.ignore_index = ignore_index

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Count the pixels of a batch.

        Args:
            data_batch: not used.
            data_samples: dicts with ``pred_sem_seg`` and ``gt_sem_seg``, both
                (1, H, W).

        Raises:
            UserError: annotation or prediction has a label outside the
                classes, or their sizes differ; names the image.
        """
        assert self.dataset_meta is not None
        num_classes = len(self.dataset_meta['classes'])
        for sample in data_samples:
            prediction = sample['pred_sem_seg']['data'].squeeze(0)
            labels = sample['gt_sem_seg']['data'].squeeze(0).to(prediction.device)
            try:
                self.results.append(count_pairs(labels, prediction, num_classes, self.ignore_index))
            except ValueError as error:
                raise UserError(f'{sample.get("img_path", "an image")}: {error}') from None

    def compute_metrics(self, results: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Sum the results of all images, write the report, and return the scores.

        Args:
            results: results of :func:`count_pairs`, one per image.
        """
        assert self.dataset_meta is not None
        classes = self.dataset_meta['classes']
        matrix = np.zeros((len(classes), len(classes)), np.int64)
        for cells, counts in results:
            matrix.reshape(-1)[cells.numpy()] += counts.numpy()
        if self.out is not None:
            from .report import write_report

            write_report(self.out, matrix, classes, self.sort)
        scores = class_scores(matrix)
        return dict(
            aAcc=round(scores.overall_accuracy * 100, 2),
            mIoU=round(mean_score(scores.iou) * 100, 2),
            mAcc=round(mean_score(scores.accuracy) * 100, 2),
        )


def count_pairs(labels: Tensor, prediction: Tensor, num_classes: int, ignore_index: int = 255) -> tuple[Tensor, Tensor]:
    """Count the pixels of each pair of label and predicted label.

    Args:
        labels: (H, W) integers, 0 to K - 1 or ``ignore_index``.
        prediction: (H, W) integers, 0 to K - 1.
        num_classes: K.
        ignore_index: label of pixels that do not count.

    Returns:
        Pairs that occur, as ``label * K + predicted``, and their counts; both
        int64 on the CPU.

    Raises:
        UserError: there are other labels, or the sizes differ.
    """
    if labels.shape != prediction.shape:
        raise UserError(
            f'annotation of shape {tuple(labels.shape)}, prediction of shape {tuple(prediction.shape)}; '
            'expected the same (in a test pipeline LoadAnnotations belongs after Resize)'
        )
    counted = labels != ignore_index
    # int64, because products of uint8 labels would overflow
    labels, prediction = labels[counted].long(), prediction[counted].long()
    check_labels(labels, num_classes, ignore_index, 'annotation')
    check_labels(prediction, num_classes, None, 'prediction')
    counts = torch.bincount(labels * num_classes + prediction, minlength=num_classes**2)
    cells = counts.nonzero().squeeze(1)
    return cells.cpu(), counts[cells].cpu()


@dataclass(frozen=True)
class ClassScores:
    """Scores of each class from 0 to 1, NaN where there is no pixel to divide by. Arrays are (K,).

    Attributes:
        iou: intersection over union.
        accuracy: share of the pixels of the class that are predicted as the
            class (recall).
        precision: share of the pixels predicted as the class that belong to it.
        share: share of the class in all labelled pixels.
        pixels: number of pixels of the class.
        overall_accuracy: share of all labelled pixels that are correct.
    """

    iou: np.ndarray
    accuracy: np.ndarray
    precision: np.ndarray
    share: np.ndarray
    pixels: np.ndarray
    overall_accuracy: float


def class_scores(matrix: np.ndarray) -> ClassScores:
    """Compute the scores of each class.

    Args:
        matrix: (K, K) pixels; rows are annotation, columns prediction.
    """
    right, labelled, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    total = labelled.sum()
    with np.errstate(divide='ignore', invalid='ignore'):
        return ClassScores(
            iou=right / (labelled + predicted - right),
            accuracy=right / labelled,
            precision=right / predicted,
            share=labelled / total,
            pixels=labelled,
            overall_accuracy=float(right.sum() / total),
        )


def mean_score(values: np.ndarray) -> float:
    """Return the mean over the classes whose value is not NaN, or NaN if there are none."""
    return float(values[~np.isnan(values)].mean()) if not np.isnan(values).all() else float('nan')
