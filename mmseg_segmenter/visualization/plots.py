"""Plots of confusion matrices and training curves, without a display."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

MOST_NUMBERS = 40  # classes up to which a matrix has numbers in its cells
MOST_NAMES = 250  # classes up to which it has names at its sides


def new_figure(width: float, height: float) -> Figure:
    """A figure that needs no display and no global state.

    Args:
        width: inches.
        height: inches.
    """
    figure = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(figure)
    return figure


def confusion_matrix(path: str, matrix: np.ndarray, classes: Sequence[str], title: str = '') -> None:
    """Percent of each class's pixels that were taken for each class.

    Rows are annotation and add up to 100; those of classes without a pixel
    are grey. Up to :data:`MOST_NUMBERS` classes have the numbers written in
    (0.5 and more); beyond :data:`MOST_NAMES` the sides count classes.

    Args:
        path: PNG to write.
        matrix: (K, K) pixels, rows are annotation, columns prediction.
        classes: K names.
        title: above the plot.
    """
    count = len(classes)
    totals = matrix.sum(1, keepdims=True)
    percent = np.ma.masked_invalid(np.divide(matrix * 100, totals, out=np.full(matrix.shape, np.nan), where=totals > 0))
    numbers = count <= MOST_NUMBERS
    # inches; as large as names need, and without any of them to fit a screen
    cell = 0.42 if numbers else 0.16 if count <= MOST_NAMES else 12 / count
    figure = new_figure(max(5.0, cell * count + 2.5), max(4.0, cell * count + 1.8))
    axis = figure.add_subplot()
    axis.set_facecolor('0.85')
    # a root spreads the small values, which are the confusions
    image = axis.imshow(percent, cmap='Blues', norm=PowerNorm(0.5, 0, 100))
    size = 9 if numbers else 6
    if count <= MOST_NAMES:
        axis.set_xticks(range(count), classes, rotation=90, fontsize=size)
        axis.set_yticks(range(count), classes, fontsize=size)
        axis.tick_params(labeltop=not numbers)  # it is far from there to the bottom
    axis.set_xlabel('prediction')
    axis.set_ylabel('annotation')
    axis.set_title(title, fontsize=10)
    between = np.arange(count - 1) + 0.5
    axis.hlines(between, -0.5, count - 0.5, color='0.9', linewidth=0.4)
    axis.vlines(between, -0.5, count - 0.5, color='0.9', linewidth=0.4)
    if numbers:
        for row, column in zip(*np.nonzero(percent.filled(0) >= 0.5), strict=True):
            value = percent[row, column]
            colour = 'white' if value > 45 else 'black'
            axis.text(column, row, f'{value:.0f}', ha='center', va='center', fontsize=8, color=colour)
    bar = figure.colorbar(image, shrink=min(1.0, 4 / (cell * count)), ticks=[0, 1, 5, 10, 25, 50, 75, 100])
    bar.set_label("% of the class's pixels")
    figure.savefig(path, dpi=110)


@dataclass(frozen=True)
class Curve:
    """One line of a plot.

    Attributes:
        label: of the run.
        iterations: (N,).
        values: (N,); NaN leaves a gap.
        smoothed: (N,) drawn over the values, or None.
        markers: few points, each of its own.
        colour: number of the run.
    """

    label: str
    iterations: np.ndarray
    values: np.ndarray
    smoothed: np.ndarray | None
    markers: bool
    colour: int


def curves(path: str, panels: dict[str, list[Curve]]) -> None:
    """Curves against iterations, one panel for each quantity.

    Args:
        path: PNG to write.
        panels: curves by name of the quantity.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    runs = {curve.label: curve.colour for group in panels.values() for curve in group}
    figure = new_figure(4.6 * columns, 3.4 * rows + 0.25 * len(runs))
    lines: dict[str, Any] = {}
    last = max(curve.iterations.max() for group in panels.values() for curve in group)
    for number, (name, group) in enumerate(panels.items()):
        axis = figure.add_subplot(rows, columns, number + 1)
        for curve in group:
            style: dict[str, Any] = dict(
                color=f'C{curve.colour % 10}', linestyle=('-', '--', ':', '-.')[curve.colour // 10 % 4]
            )
            if curve.smoothed is None:
                marker = 'o' if curve.markers or len(curve.values) == 1 else None
                (line,) = axis.plot(curve.iterations, curve.values, marker=marker, markersize=4, **style)
            else:
                axis.plot(curve.iterations, curve.values, alpha=0.3, linewidth=0.8, **style)
                (line,) = axis.plot(curve.iterations, curve.smoothed, linewidth=1.6, **style)
            lines.setdefault(curve.label, line)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel('iteration')
        axis.grid(alpha=0.3)
        axis.set_xlim(0, max(last, 1) * 1.02)  # the same in all panels
    figure.legend(list(lines.values()), list(lines), loc='outside lower center', ncols=1 if len(lines) > 4 else 2)
    figure.savefig(path, dpi=110)
