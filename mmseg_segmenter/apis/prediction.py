"""The result for one image: labels, probabilities, pictures, files."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from ..errors import UserError
from ..files import replace_file
from .images import InputImage

_SUFFIXES = {
    'overlay': ('.png', '.jpg', '.jpeg', '.webp'),
    'mask': ('.png',),
    'labels': ('.png',),
    'probabilities': ('.npz',),
}
_STRIP = 512  # rows that are coloured at once, which bounds the memory for large images
_CHUNK = 1 << 22  # pixels that are counted at once


class LegendEntry(NamedTuple):
    """A class that occurs in a prediction.

    Attributes:
        label: number of the class.
        name: its name.
        colour: its RGB colour, 0 to 255.
        pixels: number of its pixels.
        share: share of the image, 0 to 1.
    """

    label: int
    name: str
    colour: tuple[int, int, int]
    pixels: int
    share: float


@dataclass(frozen=True)
class Classes:
    """Names and colours of the classes of a model.

    Attributes:
        names: of K classes.
        palette: (K, 3) uint8 RGB.
    """

    names: tuple[str, ...]
    palette: np.ndarray

    def __len__(self) -> int:
        return len(self.names)


@dataclass
class Prediction:
    """The segmentation of one image, at the size of the original.

    Attributes:
        image: the image that was segmented.
        labels: (H, W) uint8, or uint16 above 256 classes; 0 to K - 1.
        classes: names and colours.
        index: position of the image among the inputs, from 0.
    """

    image: InputImage
    labels: np.ndarray
    classes: Classes
    index: int = 0
    _probabilities: Callable[[], np.ndarray] | None = None
    _confidence: Callable[[], np.ndarray] | None = None

    @property
    def source(self) -> str:
        """Path or name of the image."""
        return self.image.source

    @cached_property
    def probabilities(self) -> np.ndarray:
        """(K, H, W) float16, the softmax over the classes.

        Computed when it is first asked for.
        """
        assert self._probabilities is not None
        return self._probabilities()

    @cached_property
    def confidence(self) -> np.ndarray:
        """(H, W) float16, the probability of the predicted class.

        Computed when it is first asked for, without the probabilities of the other classes.
        """
        assert self._confidence is not None
        return self._confidence()

    @cached_property
    def class_pixels(self) -> np.ndarray:
        """(K,) int64, the number of pixels of each class."""
        labels = self.labels.ravel()
        pixels = np.zeros(len(self.classes), np.int64)
        for start in range(0, labels.size, _CHUNK):  # bincount converts to int64
            pixels += np.bincount(labels[start : start + _CHUNK], minlength=len(pixels))
        return pixels

    def forget_scores(self) -> None:
        """Free the memory from which probabilities and confidence are computed."""
        self._probabilities = self._confidence = None

    def legend(self) -> list[LegendEntry]:
        """Return the classes that occur, the largest first."""
        pixels = self.class_pixels
        present = sorted(np.flatnonzero(pixels).tolist(), key=lambda label: -pixels[label])
        return [
            LegendEntry(
                label,
                self.classes.names[label],
                (int(r), int(g), int(b)),
                int(pixels[label]),
                float(pixels[label] / self.labels.size),
            )
            for label in present
            for r, g, b in [self.classes.palette[label]]
        ]

    def coloured(self) -> np.ndarray:
        """Return the colour of each pixel's class, (H, W, 3) uint8 RGB."""
        return self.classes.palette[self.labels]

    def overlay(self, opacity: float = 0.5) -> np.ndarray:
        """Lay the colours of the classes over the image.

        Args:
            opacity: 0 shows the image alone, 1 the colours alone.

        Returns:
            (H, W, 3) uint8 RGB.

        Raises:
            UserError: ``opacity`` is not within 0 to 1.
        """
        if not 0 <= opacity <= 1:
            raise UserError(f'opacity={opacity}; expected 0 to 1')
        out = np.empty((*self.labels.shape, 3), np.uint8)
        for start in range(0, len(out), _STRIP):
            rows = slice(start, start + _STRIP)
            colours = self.classes.palette[self.labels[rows]]
            out[rows] = cv2.addWeighted(colours, opacity, np.ascontiguousarray(self.image.rgb[rows]), 1 - opacity, 0)
        return out

    def mask(self) -> Image.Image:
        """Return the labels as an image with a colour table (mode ``P``), or of 16 bits above 256 classes."""
        if self.labels.dtype != np.uint8:
            return Image.fromarray(self.labels)
        image = Image.fromarray(self.labels)
        image.putpalette(self.classes.palette.ravel().tolist())
        return image

    def save(self, path: str | os.PathLike[str], kind: str = 'overlay') -> None:
        """Write the prediction to a file, whole or not at all.

        Args:
            path: file to write; its folder is made.
            kind: ``'overlay'`` (any image suffix), ``'mask'`` (PNG with a colour table), ``'labels'``
                (PNG of the labels without colours) or ``'probabilities'`` (``.npz`` with
                ``probabilities`` (K, H, W) float16 and ``classes``).

        Raises:
            UserError: an unknown kind, or a suffix that does not fit it.
            FileAccessError: the file cannot be written.
        """
        path = os.fspath(path)
        if kind not in _SUFFIXES:
            raise UserError(f'kind={kind!r}; expected one of {", ".join(_SUFFIXES)}')
        if not path.lower().endswith(_SUFFIXES[kind]):
            expected = ' or '.join(_SUFFIXES[kind])
            raise UserError(f'{path}: expected a name that ends in {expected} for kind={kind!r}')
        replace_file(path, lambda part: self.write(part, kind))

    def write(self, path: str, kind: str, opacity: float = 0.5) -> None:
        """Write a file as :meth:`save`, without its checks, and in place.

        Args:
            path: file to write.
            kind: as :meth:`save`.
            opacity: of the colours in an overlay.
        """
        if kind == 'probabilities':
            self._save_probabilities(path)
        elif kind == 'overlay':
            _save_image(Image.fromarray(self.overlay(opacity)), path)
        else:
            _save_image(self.mask() if kind == 'mask' else Image.fromarray(self.labels), path)

    def _save_probabilities(self, path: str) -> None:
        with open(path, 'wb') as file:
            np.savez_compressed(file, probabilities=self.probabilities, classes=np.array(self.classes.names))


def _save_image(image: Image.Image, path: str) -> None:
    # Level 1 takes a third of the time of Pillow's default for files a few per cent larger.
    options: dict[str, Any] = dict(compress_level=1) if path.lower().endswith('.png') else dict(quality=92)
    image.save(path, **options)
