"""Plot confusion matrices and training curves, without a display."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

MAX_NUMBERED = 40  # classes of a matrix with numbers in its cells
MAX_NAMED = 250  # classes of a matrix with names at its axes


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of a size in inches that needs no display and no global state."""
    figure = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(figure)
    return figure


def confusion_matrix(path: str, matrix: np.ndarray, classes: Sequence[str], title: str = '') -> None:
    """Plot a confusion matrix, in percent of the pixels of each annotated class.

    Rows add up to 100 %; those of classes without pixels are grey. Cells show
    numbers (from 0.5 %) for up to :data:`MAX_NUMBERED` classes, and axes show
    names for up to :data:`MAX_NAMED`.

    Args:
        path: PNG to write.
        matrix: (K, K) pixels; rows are annotation, columns prediction.
        classes: K names.
        title: text above the plot.
    """
    count = len(classes)
    totals = matrix.sum(1, keepdims=True)
    percent = np.ma.masked_invalid(np.divide(matrix * 100, totals, out=np.full(matrix.shape, np.nan), where=totals > 0))
    numbers = count <= MAX_NUMBERED
    # Inches per class: enough for numbers or names; without either, the whole plot fits a screen.
    cell = 0.42 if numbers else 0.16 if count <= MAX_NAMED else 12 / count
    figure = new_figure(max(5.0, cell * count + 2.5), max(4.0, cell * count + 1.8))
    axis = figure.add_subplot()
    axis.set_facecolor('0.85')
    # The square root spreads small values, which are the confusions.
    image = axis.imshow(percent, cmap='Blues', norm=PowerNorm(0.5, 0, 100))
    size = 9 if numbers else 6
    if count <= MAX_NAMED:
        axis.set_xticks(range(count), classes, rotation=90, fontsize=size)
        axis.set_yticks(range(count), classes, fontsize=size)
        axis.tick_params(labeltop=not numbers)  # large matrices have names at the top too
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
    bar.set_label('% of the pixels of the class')
    figure.savefig(path, dpi=110)


@dataclass(frozen=True)
class Curve:
    """A line of a plot.

    Attributes:
        label: name of the run, for the legend.
        iterations: (N,).
        values: (N,); NaN leaves a gap.
        smoothed: (N,) drawn over the values, or None.
        markers: mark each point.
        colour: number of the run, which selects colour and line style.
    """

    label: str
    iterations: np.ndarray
    values: np.ndarray
    smoothed: np.ndarray | None
    markers: bool
    colour: int


def curves(path: str, panels: dict[str, list[Curve]]) -> None:
    """Plot curves against iterations, with one panel per quantity.

    Args:
        path: PNG to write.
        panels: curves by the name of the quantity.
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
        axis.set_xlim(0, max(last, 1) * 1.02)  # same range in all panels
    figure.legend(list(lines.values()), list(lines), loc='outside lower center', ncols=1 if len(lines) > 4 else 2)
    figure.savefig(path, dpi=110)
