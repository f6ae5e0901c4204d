"""Write a confusion matrix to files: a plot, counts and a table of scores by class."""

import os
from collections.abc import Callable, Sequence

import numpy as np

from ..errors import UserError
from ..files import check_destination, write_atomically, write_text
from ..tables import format_table, to_csv
from ..visualization.plots import confusion_matrix as plot
from .confusion_matrix import class_scores, mean_score

SORTS = ('class', 'iou', 'share')


def check_arguments(out: str, sort: str = 'class') -> None:
    """Check the arguments of :func:`write_report`, before the work.

    Raises:
        UserError: ``out`` is not the name of a PNG, or ``sort`` is unknown.
        OSError: the file cannot be written.
    """
    check_destination(out, '.png')
    if sort not in SORTS:
        raise UserError(f'sort={sort!r}; expected one of {", ".join(SORTS)}')


def class_table(matrix: np.ndarray, classes: Sequence[str], sort: str = 'class') -> list[list[str]]:
    """Return a table of scores by class, in percent.

    Args:
        matrix: (K, K) pixels; rows are annotation, columns prediction.
        classes: K names.
        sort: ``'class'`` by number, ``'iou'`` lowest IoU first, ``'share'``
            most frequent class first.

    Returns:
        Header, K rows, and the means over the classes that have a value.
        ``-`` stands for a score without pixels to divide by.
    """
    scores = class_scores(matrix)
    columns = [100 * column for column in (scores.iou, scores.accuracy, scores.precision, scores.share)]
    keys = dict(zip(SORTS, (np.arange(len(classes)), scores.iou, -scores.share), strict=True))
    order = np.argsort(keys[sort], kind='stable')  # NaN last
    rows = [[classes[k], *(_format(column[k]) for column in columns), str(scores.pixels[k])] for k in order]
    means = [_format(mean_score(column)) for column in columns[:3]]
    header = ['class', 'IoU', 'Acc', 'precision', 'share', 'pixels']
    return [header, *rows, ['mean', *means, '', str(scores.pixels.sum())]]


def _format(value: float) -> str:
    return '-' if np.isnan(value) else f'{value:.2f}'


def report_files(out: str) -> list[str]:
    """Return the names of the files of :func:`write_report`. The last one is the Markdown table."""
    stem = out.removesuffix('.png')
    return [out, f'{stem}.csv', f'{stem}_classes.csv', f'{stem}_classes.md']


def write_report(out: str, matrix: np.ndarray, classes: Sequence[str], sort: str = 'class') -> None:
    """Write a confusion matrix and the scores by class, all files or none.

    ``NAME.png`` shows the matrix in percent of the pixels of each class, and
    ``NAME.csv`` has its counts. ``NAME_classes.csv`` and ``NAME_classes.md``
    have the table of :func:`class_table`. Existing files are replaced.

    Args:
        out: ``NAME.png``.
        matrix: (K, K) pixels; rows are annotation, columns prediction.
        classes: K names.
        sort: order of the table.

    Raises:
        UserError: ``out`` or ``sort`` is not valid, or the matrix is all zero.
        OSError: a file cannot be written.
    """
    check_arguments(out, sort)
    if not matrix.any():
        raise UserError('the confusion matrix is empty: no pixel is labelled')
    table = class_table(matrix, classes, sort)
    title = f'mIoU {table[-1][1]} %, {class_scores(matrix).overall_accuracy:.2%} of pixels correct'
    counts = [
        ['annotation \\ prediction', *classes],
        *([name, *row] for name, row in zip(classes, matrix, strict=True)),
    ]
    writers: list[Callable[[str], None]] = [
        lambda path: plot(path, matrix, classes, title),
        lambda path: write_text(path, to_csv(counts)),
        lambda path: write_text(path, to_csv(table)),
        lambda path: write_text(path, format_table(table, markdown=True) + '\n'),
    ]
    names = map(os.path.basename, report_files(out))
    write_atomically(os.path.dirname(out), dict(zip(names, writers, strict=True)), force=True)
