"""Contact sheets: rows of pictures with captions, and a legend of the classes below them.

Pictures are (H, W, 3) uint8 RGB. Label maps are (H, W) of any integer type.
"""

import os
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import UserError
from ..files import replace_file

GAP = 8  # pixels between pictures
LINE = 28  # height of a line of text
_FONT = 13
_LEGEND_LINE = 22  # height of a line of the legend
_SWATCH = 2 * _FONT, _FONT  # width and height of a patch of colour in the legend
_MIN_WIDTH = 240  # of a sheet, for the legend
_INK = (31, 31, 31)
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
    labels = resize_labels(labels, picture.shape[:2])
    ignored = labels == ignore_index
    colours = np.asarray(palette, np.uint8)[np.where(ignored, 0, labels)]
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
    wrong = resize_labels((labels != prediction).astype(np.uint8), picture.shape[:2])
    colours = np.array([_RIGHT, _WRONG], np.uint8)[wrong]
    return _hatch(_tint(picture, colours, 0.6), resize_labels(labels, picture.shape[:2]) == ignore_index)


def resize_labels(labels: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Resize a label map to (height, width) without new labels."""
    if labels.shape == tuple(size):
        return labels
    # OpenCV resizes float64, which represents every label exactly.
    resized = cv2.resize(labels.astype(np.float64), (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT)
    return resized.astype(np.int64)


def _tint(picture: np.ndarray, colours: np.ndarray, alpha: float) -> np.ndarray:
    # A grey picture, because the colours of the image could be mistaken for classes.
    grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(grey, 1 - alpha, colours, alpha, 0)


def _hatch(picture: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Hatch pixels of a picture, in place."""
    if where.any():
        y, x = np.nonzero(where)
        picture[y, x] = np.array([_IGNORED, _HATCH], np.uint8)[((x + y) % 8 < 3).astype(np.uint8)]
    return picture


def prediction_row(
    name: str,
    picture: np.ndarray,
    prediction: np.ndarray,
    palette: Sequence[Sequence[int]],
    labels: np.ndarray | None = None,
    ignore_index: int = 255,
    with_errors: bool = False,
) -> Row:
    """Draw image, annotation (if there is one), prediction and, if asked for, errors.

    Args:
        name: of the image, for the caption.
        picture: (H, W, 3) uint8.
        prediction: predicted labels.
        palette: K colours, RGB.
        labels: annotation, of the shape of ``prediction``.
        ignore_index: label of pixels without a class.
        with_errors: draw :func:`errors` too.
    """
    predicted = overlay(picture, prediction, palette, ignore_index)
    if labels is None:
        return Row([picture, predicted], name, frozenset(np.unique(prediction).tolist()))
    pictures = [picture, overlay(picture, labels, palette, ignore_index), predicted]
    if with_errors:
        pictures.append(errors(picture, labels, prediction, ignore_index))
    valid = np.count_nonzero(labels != ignore_index)
    right = np.count_nonzero((labels == prediction) & (labels != ignore_index))
    score = f'{right / valid:.1%} of pixels right' if valid else 'no pixel labelled'
    return Row(pictures, f'{name}  {score}', frozenset(np.union1d(labels, prediction).tolist()))


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
    block = (width + GAP) * len(titles) + 2 * GAP  # of a row; the gap between samples is wider
    total = max(block * columns, _MIN_WIDTH)
    lines = [rows[i : i + columns] for i in range(0, len(rows), columns)]
    heights = [max(picture.shape[0] for row in line for picture in row.pictures) for line in lines]
    legend = _draw_legend(_legend_entries(rows, classes, palette, ignore_index, marks), total)
    sheet = Image.new('RGB', (total, LINE + sum(heights) + LINE * len(lines) + legend.shape[0]), 'white')
    for column in range(columns):
        for k, title in enumerate(titles):
            _write(sheet, title, column * block + GAP + k * (width + GAP), LINE // 2, width)
    top = LINE
    for line, height in zip(lines, heights, strict=True):
        for column, row in enumerate(line):
            left = column * block + GAP
            for k, picture in enumerate(row.pictures):
                x = left + k * (width + GAP) + (width - picture.shape[1]) // 2
                sheet.paste(Image.fromarray(picture), (x, top + (height - picture.shape[0]) // 2))
            _write(sheet, row.caption, left, top + height + LINE // 2, max(block, total * (columns == 1)) - 2 * GAP)
        top += height + LINE
    sheet.paste(Image.fromarray(legend), (0, top))
    return np.array(sheet)


@cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf'), _FONT)


def _write(image: Image.Image, text: str, x: int, y: int, room: int) -> None:
    """Write a line of at most ``room`` pixels that starts at ``x`` and whose middle is at ``y``."""
    ImageDraw.Draw(image).text((x, y), _shorten(_one_line(text), room), _INK, _font(), anchor='lm')


def _one_line(text: str) -> str:
    """Replace what cannot be drawn in a line: line breaks, and bytes of file names that are not text."""
    return ''.join(c if c.isprintable() else ' ' if c.isspace() else '\N{REPLACEMENT CHARACTER}' for c in text)


def _shorten(text: str, room: int) -> str:
    """Replace the beginning of a text by an ellipsis until it is at most ``room`` pixels wide."""
    while len(text) > 2 and (width := _font().getlength(text)) > room:
        text = '…' + text[max(2, int(len(text) * (1 - room / width))) :]
    return text


class _Entry(NamedTuple):
    name: str
    colour: Sequence[int]
    hatched: bool = False


def _legend_entries(
    rows: Sequence[Row], classes: Sequence[str], palette: Sequence[Sequence[int]], ignore_index: int, marks: bool
) -> list[_Entry]:
    """Return the names and colours of what the pictures show."""
    present = frozenset[int]().union(*(row.labels for row in rows))
    entries = [_Entry(classes[k], palette[k]) for k in sorted(present - {ignore_index})]
    entries += [_Entry('right', _RIGHT), _Entry('wrong', _WRONG)] * marks
    entries += [_Entry('ignored', _IGNORED, hatched=True)] * (ignore_index in present)
    return entries


def _draw_legend(entries: Sequence[_Entry], width: int) -> np.ndarray:
    """Draw the entries in columns.

    Returns:
        (H, ``width``, 3) uint8 RGB; H is 0 without entries.
    """
    if not entries:
        return np.empty((0, width, 3), np.uint8)
    swatch_width, swatch_height = _SWATCH
    around = swatch_width + 3 * GAP  # pixels of an entry beside its name
    names = [_shorten(_one_line(entry.name), width - GAP - around) for entry in entries]
    pitch = int(max(map(_font().getlength, names))) + 1 + around
    columns = max(1, (width - GAP) // pitch)
    lines = -(-len(entries) // columns)
    image = Image.new('RGB', (width, lines * _LEGEND_LINE + GAP), 'white')
    for i, (name, entry) in enumerate(zip(names, entries, strict=True)):
        x, y = GAP + i % columns * pitch, GAP // 2 + i // columns * _LEGEND_LINE + _LEGEND_LINE // 2
        swatch = np.full((swatch_height, swatch_width, 3), entry.colour, np.uint8)
        swatch = _hatch(swatch, np.full(swatch.shape[:2], entry.hatched))
        image.paste(Image.fromarray(swatch), (x, y - swatch_height // 2))
        _write(image, name, x + swatch_width + GAP, y, width)
    return np.array(image)


def save(path: str, sheet: np.ndarray) -> None:
    """Write a picture as PNG or JPEG, whole or not at all. Its folder is created, and an existing file is replaced.

    Args:
        path: file to write. Its suffix selects the format; any but ``.jpg`` and
            ``.jpeg`` means PNG.
        sheet: (H, W, 3) uint8 RGB.

    Raises:
        OSError: the file cannot be written.
    """
    jpeg = path.lower().endswith(('.jpg', '.jpeg'))
    # Level 1 takes a third of the time of Pillow's default for files a few per cent larger. Without subsampling, the
    # borders of the colours stay sharp.
    options: dict[str, Any] = dict(quality=92, subsampling=0) if jpeg else dict(compress_level=1)
    image = Image.fromarray(sheet)
    replace_file(path, lambda part: image.save(part, format='JPEG' if jpeg else 'PNG', **options))
