"""What a page gets of a result: what it shows, reduced to the size of a screen, and files to download."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from ..apis import InputImage, Prediction
from .results import Opinion

MAX_SIDE = 2048  # pixels of what the page shows
_THUMBNAIL = 176


class Content(NamedTuple):
    """The content of an HTTP response.

    Attributes:
        data: its bytes.
        media_type: what they are.
    """

    data: bytes
    media_type: str


def shown_size(image: InputImage) -> tuple[int, int]:
    """Return height and width of an image on the page."""
    height, width = image.bgr.shape[:2]
    scale = min(1.0, MAX_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def picture(image: InputImage) -> Content:
    """Return an image as the page shows it, a JPEG."""
    return _jpeg(image, shown_size(image), quality=90)


def thumbnail(image: InputImage) -> Content:
    """Return a small image for the list of examples, a JPEG."""
    height, width = image.bgr.shape[:2]
    scale = min(1.0, _THUMBNAIL / min(height, width))
    return _jpeg(image, (max(1, round(height * scale)), max(1, round(width * scale))), quality=80)


def shown_pixels(opinion: Opinion) -> Content:
    """Return labels and confidence as the page shows them.

    Plain numbers: of a PNG, a browser would not give the exact values to a script in all its modes.

    Returns:
        (height, width) labels of 16 bits, the low byte first, then (height, width) confidence of 8
        bits, both of size :func:`shown_size`.
    """
    height, width = shown_size(opinion.prediction.image)
    rows, columns = (
        ((np.arange(shown) + 0.5) * size / shown).astype(np.intp)
        for shown, size in zip((height, width), opinion.prediction.labels.shape, strict=True)
    )
    labels, confidence = (array[rows[:, None], columns] for array in (opinion.prediction.labels, opinion.confidence))
    return Content(labels.astype('<u2').tobytes() + confidence.tobytes(), 'application/octet-stream')


def download(prediction: Prediction, kind: str, opacity: float, hidden: Sequence[int]) -> Content:
    """Return a file with a result at the size of the image, a PNG.

    Args:
        prediction: to write.
        kind: ``'mask'`` (labels with a colour table), ``'labels'`` (labels alone) or ``'overlay'``.
        opacity: of the colours in an overlay, 0 to 1.
        hidden: classes that are not coloured in an overlay.

    Raises:
        UserError: another opacity.
    """
    if kind == 'overlay':
        rgb = prediction.overlay(opacity)
        hide = np.isin(np.arange(len(prediction.classes)), hidden)[prediction.labels]
        rgb[hide] = prediction.image.rgb[hide]
        image = Image.fromarray(rgb)
    else:
        image = prediction.mask() if kind == 'mask' else Image.fromarray(prediction.labels)
    out = io.BytesIO()
    image.save(out, 'PNG', compress_level=1)
    return Content(out.getvalue(), 'image/png')


def _jpeg(image: InputImage, size: tuple[int, int], quality: int) -> Content:
    bgr = cv2.resize(image.bgr, size[::-1], interpolation=cv2.INTER_AREA)
    return Content(cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes(), 'image/jpeg')
