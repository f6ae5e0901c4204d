"""Check annotations against the number of classes."""

from collections.abc import Iterable
from typing import Any

from ...errors import UserError


def check_labels(data_samples: Iterable[Any], num_classes: int, ignore_index: int | None) -> None:
    """Refuse labels that are neither a class nor ``ignore_index``.

    Only looks at annotations in host memory, where it costs under a
    millisecond an image; on a GPU it would have to wait for it.

    Args:
        data_samples: ``SegDataSample``s; ones without annotation are skipped.
        num_classes: number of classes K, labels 0 to K - 1.
        ignore_index: label of pixels without a class.

    Raises:
        ValueError: names the annotation file, the label and the remedy.
    """
    for sample in data_samples:
        if 'gt_sem_seg' not in sample:
            continue
        labels = sample.gt_sem_seg.data
        if labels.device.type != 'cpu':
            continue
        wrong = (labels < 0) | (labels >= num_classes)
        if ignore_index is not None:
            wrong &= labels != ignore_index
        if wrong.any():
            values = labels[wrong].unique().tolist()
            found = ', '.join(map(str, values[:10])) + (', ...' if len(values) > 10 else '')
            name = sample.get('seg_map_path', None) or sample.get('img_path', None) or 'an annotation'
            raise UserError(
                f'{name}: found label {found}, expected 0 to {num_classes - 1} (num_classes={num_classes}) or '
                f'{ignore_index} (ignored). Set num_classes of the head to the number of classes, or '
                'reduce_zero_label=True in the dataset if 0 means "no class" and classes start at 1'
            )
