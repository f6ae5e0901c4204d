"""Check label maps against the number of classes."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

from .errors import BadSampleError

_MAX_SHOWN = 10  # labels named in a message
LABELS_HINT = (
    'Set model.decode_head.num_classes to the number of classes, or dataset.reduce_zero_label=True if 0 means '
    '"no class" and classes start at 1'
)


def check_labels(
    labels: Tensor | np.ndarray,
    num_classes: int,
    ignore_index: int | None,
    source: str,
    first_label: int = 0,
    hint: str = '',
) -> None:
    """Raise an error if a label is neither a class nor ``ignore_index``.

    Args:
        labels: integers of any shape: classes 0 to K - 1, or ``ignore_index``.
        num_classes: number of classes K.
        ignore_index: label of pixels without a class, None if there is none.
        source: where the labels come from, usually a file name. The message
            starts with it.
        first_label: value that stands for class 0 in the file (1 with
            ``reduce_zero_label``). The message shows labels as in the file.
        hint: what the user can change. The message ends with it.

    Raises:
        BadSampleError: names the source, the labels found and those expected.
    """
    if isinstance(labels, np.ndarray) and _all_right(labels, num_classes, ignore_index):
        return
    wrong = (labels < 0) | (labels >= num_classes)
    if ignore_index is not None:
        wrong &= labels != ignore_index
    if not wrong.any():
        return
    values = labels[wrong]
    values = values.unique() if isinstance(values, Tensor) else np.unique(values)
    raise BadSampleError(label_message([int(v) for v in values], num_classes, ignore_index, source, first_label, hint))


def _all_right(labels: np.ndarray, num_classes: int, ignore_index: int | None) -> bool:
    """Return True if all labels are surely right: in a pass or two, a twentieth of the time of the comparisons."""
    if labels.dtype.kind != 'u':
        return False
    if ignore_index != np.iinfo(labels.dtype).max:
        return bool(labels.max(initial=0) < num_classes)
    # The ignored label becomes 0, class k becomes k + 1.
    return bool((labels + labels.dtype.type(1)).max(initial=0) <= num_classes)


def label_message(
    wrong: Iterable[int],
    num_classes: int,
    ignore_index: int | None,
    source: str,
    first_label: int = 0,
    hint: str = '',
) -> str:
    """Return the message of :func:`check_labels` for the label(s) ``wrong``."""
    found = [str(label + first_label) for label in sorted(wrong)]
    shown = ', '.join(found[:_MAX_SHOWN]) + (', ...' if len(found) > _MAX_SHOWN else '')
    ignored = '' if ignore_index is None else f' or {ignore_index} (ignored)'
    message = (
        f'{source}: found label {shown}, expected {first_label} to {num_classes - 1 + first_label} '
        f'(num_classes={num_classes}){ignored}'
    )
    return f'{message}. {hint}' if hint else message


def check_annotations(data_samples: Iterable[Any], num_classes: int, ignore_index: int | None) -> None:
    """Raise an error if an annotation has a label that is neither a class nor ``ignore_index``.

    Annotations on a GPU are skipped, because reading them would wait for it.
    On the CPU the check takes less than a millisecond per image.

    Args:
        data_samples: instances of ``SegDataSample``, with or without
            ``gt_sem_seg``.
        num_classes: number of classes K.
        ignore_index: label of pixels without a class, None if there is none.

    Raises:
        BadSampleError: names the annotation file, the labels and what to change.
    """
    for sample in data_samples:
        if 'gt_sem_seg' not in sample or sample.gt_sem_seg.data.device.type != 'cpu':
            continue
        check_labels(
            sample.gt_sem_seg.data,
            num_classes,
            ignore_index,
            source=sample.get('seg_map_path', None) or sample.get('img_path', None) or 'an annotation',
            hint=LABELS_HINT,
        )


def num_labels(num_classes: int, out_channels: int | None = None) -> int:
    """Return the number of labels that a head separates.

    Args:
        num_classes: of the head.
        out_channels: of the head; 1 is mmseg's binary mode, in which one sigmoid map stands for two classes and
            ``num_classes`` may be 1 or 2.
    """
    return max(num_classes, 2) if out_channels == 1 else num_classes
