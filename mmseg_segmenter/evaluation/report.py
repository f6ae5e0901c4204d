"""A confusion matrix as files: picture, counts and table by class."""

import csv
import io
import os
from collections.abc import Callable, Sequence

import numpy as np

from ..errors import UserError
from ..files import check_destination, write_atomically, write_text
from ..visualization.plots import confusion_matrix as plot
from .confusion_matrix import class_scores, mean_score

SORTS = ('class', 'iou', 'share')
_HEAD = ('class', 'IoU', 'Acc', 'precision', 'share', 'pixels')


def check_arguments(out: str, sort: str = 'class') -> None:
    """Fail before the work, not after it.

    Raises:
        ValueError: ``out`` is not the name of a PNG, or ``sort`` is unknown.
        OSError: cannot write there.
    """
    check_destination(out, '.png')
    if sort not in SORTS:
        raise UserError(f'sort={sort!r}; expected one of {", ".join(SORTS)}')


def class_table(matrix: np.ndarray, classes: Sequence[str], sort: str = 'class') -> list[list[str]]:
    """Scores by class in percent, a line each, and their means.

    Args:
        matrix: (K, K) pixels, rows are annotation, columns prediction.
        classes: K names.
        sort: ``'class'`` by number, ``'iou'`` worst first, ``'share'`` most
            frequent first.

    Returns:
        Head, K lines and the means, as text; ``-`` where a class has no pixel
        to divide by. Means are over the classes that have a value.
    """
    scores = class_scores(matrix)
    columns = [100 * column for column in (scores.iou, scores.accuracy, scores.precision, scores.share)]
    # NaN sorts last
    keys = dict(class_=np.arange(len(classes)), iou=scores.iou, share=-scores.share)
    order = np.argsort(keys['class_' if sort == 'class' else sort], kind='stable')
    lines = [[classes[k], *(_number(column[k]) for column in columns), str(scores.pixels[k])] for k in order]
    means = [_number(mean_score(column)) for column in columns[:3]]
    return [list(_HEAD), *lines, ['mean', *means, '', str(scores.pixels.sum())]]


def _number(value: float) -> str:
    return '-' if np.isnan(value) else f'{value:.2f}'


def markdown(table: list[list[str]]) -> str:
    """A table in Markdown, in columns."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    rows = [[cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
            for row in table]  # fmt: skip
    rule = ['-' * w if i == 0 else '-' * (w - 1) + ':' for i, w in enumerate(widths)]
    return ''.join('| ' + ' | '.join(row) + ' |\n' for row in [rows[0], rule, *rows[1:]])


def to_csv(table: Sequence[Sequence[object]]) -> str:
    """A table as comma-separated values."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator='\n').writerows(table)
    return buffer.getvalue()


def report_files(out: str) -> list[str]:
    """Names of the files of :func:`write_report`; the last is the table in Markdown."""
    stem = out.removesuffix('.png')
    return [out, f'{stem}.csv', f'{stem}_classes.csv', f'{stem}_classes.md']


def write_report(out: str, matrix: np.ndarray, classes: Sequence[str], sort: str = 'class') -> None:
    """Write the matrix and what follows from it, all files or none.

    ``NAME.png`` is the matrix in percent of each class's pixels, ``NAME.csv``
    the same in pixels, ``NAME_classes.csv`` and ``NAME_classes.md`` the table
    of :func:`class_table`. Existing files are replaced.

    Args:
        out: ``NAME.png``.
        matrix: (K, K) pixels, rows are annotation, columns prediction.
        classes: K names.
        sort: order of the table.

    Raises:
        ValueError: ``out`` or ``sort`` is not valid, or the matrix is all zero.
        OSError: cannot write there.
    """
    check_arguments(out, sort)
    if not matrix.any():
        raise UserError('the confusion matrix is empty: no pixel is labelled')
    table = class_table(matrix, classes, sort)
    scores = class_scores(matrix)
    title = f'mIoU {table[-1][1]} %, {scores.overall_accuracy:.2%} of pixels right'
    counts = [
        ['annotation \\ prediction', *classes],
        *([name, *row] for name, row in zip(classes, matrix, strict=True)),
    ]
    writers: list[Callable[[str], None]] = [
        lambda path: plot(path, matrix, classes, title),
        lambda path: write_text(path, to_csv(counts)),
        lambda path: write_text(path, to_csv(table)),
        lambda path: write_text(path, markdown(table)),
    ]
    names = map(os.path.basename, report_files(out))
    write_atomically(os.path.dirname(out), dict(zip(names, writers, strict=True)), force=True)
