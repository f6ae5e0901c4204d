"""Contact sheets: rows of pictures with captions, and a legend of the classes below them.

Pictures are (H, W, 3) uint8 RGB. Label maps are (H, W) of any integer type.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Patch
from matplotlib.textpath import text_to_path
from PIL import Image

from ..errors import UserError
from ..files import replace_file

_DPI = 72  # so that a point, the unit of font sizes, is a pixel
GAP = 8  # pixels between pictures
LINE = 28  # height of a line of text
_FONT = 13
_MIN_WIDTH = 240  # of a sheet, for the legend
_INK = '0.12'
_IGNORED, _HATCH = (150, 150, 150), (215, 215, 215)
_RIGHT, _WRONG = (70, 130, 180), (230, 60, 40)


class Row(NamedTuple):
    """Pictures of one sample, side by side.

    Attributes:
        pictures: (H, W, 3) uint8 RGB each, as many as the sheet has titles.
        caption: text below them, such as the file name.
        labels: labels in the pictures, for the legend.
    """

    pictures: Sequence[np.ndarray]
    caption: str
    labels: frozenset[int] = frozenset()


def to_rgb(image: np.ndarray, channel_order: str = 'bgr') -> np.ndarray:
    """Convert an image to a picture.

    Args:
        image: (H, W), (H, W, 1) or (H, W, 3) with values from 0 to 255. If it
            has larger values, such as a 16-bit image, its range is stretched
            to 0 to 255.
        channel_order: ``'bgr'`` or ``'rgb'``.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        UserError: the image does not have 1 or 3 channels.
    """
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        raise UserError(f'image of shape {image.shape}; expected 1 or 3 channels, (H, W, 1) or (H, W, 3)')
    image = image.astype(np.float32)
    if image.max() > 255.5:  # undoing a normalisation may exceed 255 by a rounding error
        low, high = image.min(), image.max()
        image = (image - low) * (255 / max(high - low, 1))
    picture = image.round().clip(0, 255).astype(np.uint8)
    picture = np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture
    return np.ascontiguousarray(picture[..., ::-1] if channel_order == 'bgr' else picture)


def fit(image: np.ndarray, side: int) -> np.ndarray:
    """Resize a picture (H, W, 3) so that its longer side has ``side`` pixels."""
    scale = side / max(image.shape[:2])
    width, height = (max(1, round(n * scale)) for n in (image.shape[1], image.shape[0]))
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def overlay(
    picture: np.ndarray,
    labels: np.ndarray,
    palette: Sequence[Sequence[int]],
    ignore_index: int = 255,
    alpha: float = 0.6,
) -> np.ndarray:
    """Draw a label map over a grey picture, in the colours of the classes. Ignored pixels are hatched.

    Args:
        picture: (H, W, 3) uint8.
        labels: 0 to K - 1 and ``ignore_index``; resized to the picture.
        palette: K colours, RGB.
        ignore_index: label of pixels without a class.
        alpha: opacity of the colours.

    Returns:
        (H, W, 3) uint8.
    """
    labels = _resize_labels(labels, picture)  # (H, W) of the picture
    ignored = labels == ignore_index
    colours = np.asarray(palette, np.float32)[np.where(ignored, 0, labels)]
    return _hatch(_tint(picture, colours, alpha), ignored)


def errors(picture: np.ndarray, labels: np.ndarray, prediction: np.ndarray, ignore_index: int = 255) -> np.ndarray:
    """Draw wrong pixels in red and right ones in blue over a grey picture. Ignored pixels are hatched.

    Args:
        picture: (H, W, 3) uint8.
        labels: annotation.
        prediction: predicted labels, of the shape of ``labels``.
        ignore_index: label of pixels without a class.

    Returns:
        (H, W, 3) uint8.
    """
    wrong = _resize_labels((labels != prediction).astype(np.uint8), picture).astype(bool)
    colours = np.where(wrong[..., None], np.array(_WRONG, np.float32), np.array(_RIGHT, np.float32))
    return _hatch(_tint(picture, colours, 0.6), _resize_labels(labels, picture) == ignore_index)


def _resize_labels(labels: np.ndarray, picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    # OpenCV resizes float64, which represents every label exactly.
    resized = cv2.resize(labels.astype(np.float64), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return resized.astype(np.int64)


def _tint(picture: np.ndarray, colours: np.ndarray, alpha: float) -> np.ndarray:
    # A grey picture, because the colours of the image could be mistaken for classes.
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None]
    return (grey * (1 - alpha) + colours * alpha).round().astype(np.uint8)


def _hatch(picture: np.ndarray, where: np.ndarray) -> np.ndarray:
    y, x = np.indices(where.shape, sparse=True)
    pattern = np.where(((x + y) % 8 < 3)[..., None], np.array(_HATCH, np.uint8), np.array(_IGNORED, np.uint8))
    return np.where(where[..., None], pattern, picture)


def contact_sheet(
    rows: Sequence[Row],
    titles: Sequence[str],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    columns: int = 1,
    ignore_index: int = 255,
    marks: bool = False,
) -> np.ndarray:
    """Arrange rows of pictures, with titles, captions and a legend of the classes in them.

    Text that is too long for its place loses its beginning, because the names
    of files in a folder often differ at the end only.

    Args:
        rows: at least one.
        titles: one per picture of a row.
        classes: class names.
        palette: colours of the classes, RGB.
        columns: number of rows side by side, at least 1.
        ignore_index: label of pixels without a class.
        marks: explain the colours of :func:`errors` in the legend.

    Returns:
        (H, W, 3) uint8 RGB. The pictures are not resized.
    """
    columns = min(columns, len(rows))
    width = max(picture.shape[1] for row in rows for picture in row.pictures)
    lines = [rows[i : i + columns] for i in range(0, len(rows), columns)]
    heights = [max(picture.shape[0] for row in line for picture in row.pictures) for line in lines]
    block = [GAP, *[width, GAP] * len(titles), GAP]  # the gap between samples is wider
    across = block * columns
    across.append(max(0, _MIN_WIDTH - sum(across)))
    figure = Figure(dpi=_DPI)
    canvas = FigureCanvasAgg(figure)
    entries = _legend_entries(rows, classes, palette, ignore_index, marks)
    down = [LINE, *(size for height in heights for size in (height, LINE)), _add_legend(figure, entries, sum(across))]
    figure.set_size_inches(sum(across) / _DPI, sum(down) / _DPI)
    edges = dict(left=0, bottom=0, right=1, top=1, wspace=0, hspace=0)
    grid = figure.add_gridspec(len(down), len(across), width_ratios=across, height_ratios=down, **edges)

    def write(text: str, line: int, column: int, room: int) -> None:
        cell = grid[line, column].get_position(figure)
        style: dict[str, Any] = dict(size=_FONT, color=_INK, va='center', parse_math=False)
        figure.text(cell.x0, (cell.y0 + cell.y1) / 2, _shorten(text, room), **style)

    for i, row in enumerate(rows):
        line, column = 1 + i // columns * 2, 1 + i % columns * len(block)
        for k, picture in enumerate(row.pictures):
            if line == 1:
                write(titles[k], 0, column + 2 * k, width)
            cell = grid[line, column + 2 * k].get_position(figure).transformed(figure.transFigure)  # in pixels
            x, y = cell.x0 + (cell.width - picture.shape[1]) / 2, cell.y0 + (cell.height - picture.shape[0]) / 2
            figure.figimage(picture, round(x), round(y))  # never resamples, unlike imshow
        write(row.caption, line + 1, column, sum(block) - 2 * GAP)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def _shorten(text: str, room: int) -> str:
    """Replace the beginning of a text by an ellipsis until it is at most ``room`` pixels wide."""
    while len(text) > 2 and (width := _text_width(text)) > room:
        text = '…' + text[max(2, int(len(text) * (1 - room / width))) :]
    return text


def _text_width(text: str) -> float:
    return text_to_path.get_text_width_height_descent(text, FontProperties(size=_FONT), ismath=False)[0]


def _legend_entries(
    rows: Sequence[Row], classes: Sequence[str], palette: Sequence[Sequence[int]], ignore_index: int, marks: bool
) -> list[tuple[str, Patch]]:
    """Return the names of what the pictures show, and swatches of their colours."""
    present = frozenset[int]().union(*(row.labels for row in rows))
    colours = [(classes[k], palette[k]) for k in sorted(present - {ignore_index})]
    colours += [('right', _RIGHT), ('wrong', _WRONG)] * marks
    to_hex = '#{:02x}{:02x}{:02x}'.format
    entries = [(name, Patch(facecolor=to_hex(*colour))) for name, colour in colours]
    if ignore_index in present:
        patch = Patch(facecolor=to_hex(*_IGNORED), edgecolor=to_hex(*_HATCH), hatch='////', linewidth=0)
        entries.append(('ignored', patch))
    return entries


def _add_legend(figure: Figure, entries: list[tuple[str, Patch]], width: int) -> int:
    """Add a legend at the bottom of a figure that is ``width`` pixels wide, and return its height in pixels."""
    if not entries:
        return 0
    around = 2 * _FONT + 3 * GAP  # pixels of an entry beside its name
    names = [_shorten(name, width - GAP - around) for name, _ in entries]
    columns = max(1, int((width - GAP) // (max(map(_text_width, names)) + around)))
    gap = GAP / _FONT  # in units of the font size, as the sizes of a legend are
    sizes: dict[str, Any] = dict(borderaxespad=0, borderpad=gap, handletextpad=gap, columnspacing=2 * gap)
    sizes.update(fontsize=_FONT, handlelength=2, handleheight=1.2)
    patches = [patch for _, patch in entries]
    legend = figure.legend(patches, names, ncols=columns, loc='lower left', frameon=False, labelcolor=_INK, **sizes)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return math.ceil(legend.get_window_extent().height)


def save(path: str, sheet: np.ndarray) -> None:
    """Write a picture as a PNG, whole or not at all. Its folder is created, and an existing file is replaced.

    Raises:
        OSError: the file cannot be written.
    """
    replace_file(path, lambda part: Image.fromarray(sheet).save(part, format='PNG'))
