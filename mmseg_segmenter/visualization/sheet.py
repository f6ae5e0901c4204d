"""Contact sheets: pictures in rows, a caption under each row, a legend of the classes below.

Pictures are (H, W, 3) uint8 RGB, label maps (H, W) of any integer type.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import UserError
from ..files import replace_file

GAP = 8
_TEXT = 13  # pixels
_LINE = 20
_BACKGROUND, _INK, _PAPER = (255, 255, 255), (30, 30, 30), (245, 245, 245)
_IGNORED, _HATCH = (150, 150, 150), (215, 215, 215)
_RIGHT, _WRONG = (70, 130, 180), (230, 60, 40)


@dataclass(frozen=True)
class Row:
    """Pictures of one sample, side by side.

    Attributes:
        pictures: each (H, W, 3) uint8 RGB, as many as the sheet has titles.
        caption: such as the file name.
        labels: that occur in the pictures, for the legend.
    """

    pictures: Sequence[np.ndarray]
    caption: str
    labels: frozenset[int] = frozenset()


def to_rgb(image: np.ndarray, channel_order: str = 'bgr') -> np.ndarray:
    """An image as a picture.

    Args:
        image: (H, W), (H, W, 1) or (H, W, 3), on the scale 0 to 255. One that
            exceeds it, such as 16 bit, is stretched from its own least to its
            own largest value.
        channel_order: ``'bgr'`` or ``'rgb'``.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: another number of channels.
    """
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        raise UserError(f'image of shape {image.shape}; expected 1 or 3 channels, (H, W, 1) or (H, W, 3)')
    image = image.astype(np.float32)
    if image.max() > 255.5:  # half a level for the rounding of a normalisation
        low, high = image.min(), image.max()
        image = (image - low) * (255 / max(high - low, 1))
    picture = image.round().clip(0, 255).astype(np.uint8)
    picture = np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture
    return np.ascontiguousarray(picture[..., ::-1] if channel_order == 'bgr' else picture)


def fit(image: np.ndarray, side: int) -> np.ndarray:
    """A picture at the size that it has on the sheet.

    Args:
        image: (H, W, 3) uint8.
        side: pixels of the longer side.
    """
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
    """Class colours over a grey picture; ignored pixels are hatched.

    Args:
        picture: (H, W, 3) uint8.
        labels: classes 0 to K - 1 and ``ignore_index``, resized to the picture.
        palette: K colours, RGB.
        ignore_index: label of pixels without a class.
        alpha: share of the colour.

    Returns:
        (H, W, 3) uint8.
    """
    labels = _resize_labels(labels, picture)
    ignored = labels == ignore_index
    colours = np.asarray(palette, np.float32)[np.where(ignored, 0, labels)]
    return _hatch(_tint(picture, colours, alpha), ignored)


def errors(picture: np.ndarray, labels: np.ndarray, prediction: np.ndarray, ignore_index: int = 255) -> np.ndarray:
    """Wrong pixels red, right ones blue, ignored ones hatched.

    Args:
        picture: (H, W, 3) uint8.
        labels: annotation.
        prediction: of the same shape as ``labels``.
        ignore_index: label of pixels without a class.

    Returns:
        (H, W, 3) uint8.
    """
    wrong = _resize_labels((labels != prediction).astype(np.uint8), picture).astype(bool)
    colours = np.where(wrong[..., None], np.array(_WRONG, np.float32), np.array(_RIGHT, np.float32))
    return _hatch(_tint(picture, colours, 0.6), _resize_labels(labels, picture) == ignore_index)


def _resize_labels(labels: np.ndarray, picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    # float64 holds every label and is a type that OpenCV resizes
    resized = cv2.resize(labels.astype(np.float64), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return resized.astype(np.int64)


def _tint(picture: np.ndarray, colours: np.ndarray, alpha: float) -> np.ndarray:
    # grey below the colours, or an image's own colours would be taken for classes
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
    """Lay out rows of pictures, with a legend of the classes that occur in them.

    Args:
        rows: at least one.
        titles: what each picture of a row is.
        classes: names.
        palette: their colours, RGB.
        columns: rows beside each other, at least 1.
        ignore_index: label of pixels without a class.
        marks: explain the colours of :func:`errors` in the legend.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    columns = min(columns, len(rows))
    width = max(picture.shape[1] for row in rows for picture in row.pictures)
    block = len(titles) * (width + GAP) + 2 * GAP  # wider between samples than between pictures
    lines = [rows[i : i + columns] for i in range(0, len(rows), columns)]
    heights = [max(picture.shape[0] for row in line for picture in row.pictures) for line in lines]
    present = frozenset[int]().union(*(row.labels for row in rows))
    entries = [(classes[k], _swatch(palette[k])) for k in sorted(present - {ignore_index})]
    if marks:
        entries += [('right', _swatch(_RIGHT)), ('wrong', _swatch(_WRONG))]
    if ignore_index in present:
        hatched = _swatch(_IGNORED)
        entries.append(('ignored', _hatch(hatched, np.ones(hatched.shape[:2], bool))))
    total = max(block * columns, 240)
    cell = min(max((_width(name) for name, _ in entries), default=0) + _TEXT * 2 + 30, total - GAP)
    across = max(1, (total - GAP) // cell)
    legend = -(-len(entries) // across) * _LINE
    top = _LINE + GAP
    sheet = Image.new('RGB', (total, top + sum(heights) + len(lines) * (_LINE + GAP) + legend + GAP), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    y = top
    for line, height in zip(lines, heights, strict=True):
        for column, row in enumerate(line):
            left = column * block + GAP
            for i, picture in enumerate(row.pictures):
                x = left + i * (width + GAP)
                if y == top:
                    _write(draw, (x, GAP), titles[i], width)
                draw.rectangle((x, y, x + width - 1, y + height - 1), fill=_PAPER)
                # centred, where pictures of other shapes are in the line
                place = x + (width - picture.shape[1]) // 2, y + (height - picture.shape[0]) // 2
                sheet.paste(Image.fromarray(picture), place)
            _write(draw, (left, y + height + 2), row.caption, block - 2 * GAP)
        y += height + _LINE + GAP
    for i, (name, picture) in enumerate(entries):
        x, down = GAP + i % across * cell, y + i // across * _LINE
        sheet.paste(Image.fromarray(picture), (x, down + 2))
        _write(draw, (x + _TEXT * 2 + 6, down), name, cell - _TEXT * 2 - 10)
    return np.asarray(sheet)


def _swatch(colour: Sequence[int]) -> np.ndarray:
    return np.full((_TEXT, _TEXT * 2, 3), colour, np.uint8)


@cache
def _font() -> ImageFont.FreeTypeFont:
    # comes with matplotlib, and has more alphabets than Pillow's own
    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf'), _TEXT)


def _width(text: str) -> int:
    return int(np.ceil(_font().getlength(text)))


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, room: int) -> None:
    """Too long a text loses its beginning: the names of a folder's files differ in their ends."""
    while _width(text) > room and len(text) > 2:
        text = '…' + text[2:]
    draw.text(place, text, _INK, _font())


def save(path: str, sheet: np.ndarray) -> None:
    """Write a picture as PNG, whole or not at all.

    Args:
        path: ends in ``.png``; the folder is made, a file is replaced.
        sheet: (H, W, 3) uint8 RGB.

    Raises:
        OSError: cannot write there.
    """
    replace_file(path, lambda temporary: Image.fromarray(sheet).save(temporary, format='PNG'))
