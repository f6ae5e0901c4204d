"""Write what a user wants of each prediction: pictures, masks, numbers."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ..datasets.image_files import decode, read_file
from ..errors import MissingFileError, UserError
from ..labels import check_labels
from ..visualization.sheet import contact_sheet, fit, prediction_row
from .loading import AnnotationFormat
from .prediction import LegendEntry, Prediction
from .storage import join, write_file

# Kinds of output and the suffixes of their files. Each kind has a folder of its name.
SUFFIXES = {
    'overlay': '.jpg',
    'mask': '.png',
    'labels': '.png',
    'probabilities': '.npz',
    'comparison': '.png',
    'legend': '.png',
}
_JPEG_SIDE = 65_500  # the longest side of a JPEG file
_COMPARISON_SIDE = 1024  # pixels of the longer side of a picture in a comparison


class Annotations(NamedTuple):
    """Where the annotations of images are.

    Attributes:
        folder: of the label maps, with the sub-folders of the results.
        format: their names and numbers.
    """

    folder: str
    format: AnnotationFormat

    def read(self, source: str, name: str) -> np.ndarray:
        """Return the label map (H, W) of an image; 255 marks ignored pixels.

        Args:
            source: path of the image.
            name: of its results, which gives the sub-folders.

        Raises:
            MissingFileError: there is none.
            UserError: it is not a label map.
        """
        suffix, file = self.format.image_suffix, os.path.basename(source)
        stem = file.removesuffix(suffix) if file.endswith(suffix) else os.path.splitext(file)[0]
        folders = name.rpartition('/')[0]
        path = os.path.join(self.folder, folders, stem + self.format.suffix)
        if not os.path.isfile(path):
            raise MissingFileError(f'annotation {path} of {source} not found')
        labels = decode(read_file(path), path, 'unchanged', 'pillow')
        if labels.ndim != 2:
            raise UserError(f'{path}: an image of shape {labels.shape}; expected a label map with one channel')
        labels = labels.astype(np.int64)
        if self.format.reduce_zero_label:
            labels = np.where((labels == 0) | (labels == 255), 255, labels - 1)
        return labels


@dataclass(frozen=True)
class OutputSpec:
    """What is written of each input, and where.

    Attributes:
        folder: local, or a URI. The results of kind K are in ``folder/K``.
        kinds: keys of ``SUFFIXES``.
        opacity: of the colours in overlays, 0 to 1.
        overlay_suffix: ``'.jpg'`` or ``'.png'``.
        annotations: for ``'comparison'``.
        options: settings of other kinds of input (rasters: ``bands``,
            ``value_range``; videos: ``max_frames``).

    Raises:
        UserError: an unknown kind, or a value outside its range.
    """

    folder: str
    kinds: tuple[str, ...] = ('overlay',)
    opacity: float = 0.5
    overlay_suffix: str = '.jpg'
    annotations: Annotations | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.kinds or not set(self.kinds) <= set(SUFFIXES):
            raise UserError(f'outputs={",".join(self.kinds)!r}; expected some of {", ".join(SUFFIXES)}')
        if not 0 <= self.opacity <= 1:
            raise UserError(f'opacity={self.opacity}; expected 0 to 1')
        if 'comparison' in self.kinds and self.annotations is None:
            raise UserError("the output 'comparison' needs the folder of the annotations")

    def file(self, kind: str, name: str, suffix: str | None = None) -> str:
        """Return the name of a result below ``folder``, with ``/`` between the folders."""
        suffix = suffix or (self.overlay_suffix if kind == 'overlay' else SUFFIXES[kind])
        return f'{kind}/{name}{suffix}'

    def path(self, file: str) -> str:
        """Return where a result is, from its name below ``folder``."""
        return join(self.folder, *file.split('/'))

    def write(self, prediction: Prediction, name: str) -> tuple[str, ...]:
        """Write the results for an image, each file whole or not at all.

        Args:
            prediction: for the image.
            name: of the results.

        Returns:
            The names of the files below ``folder``.

        Raises:
            UserError: a file cannot be written, or an annotation cannot be read.
        """
        files = []
        for kind in self.kinds:
            suffix = None
            if kind == 'overlay' and max(prediction.labels.shape) > _JPEG_SIDE:
                suffix = '.png'
            files.append(self.file(kind, name, suffix))
            write_file(self.path(files[-1]), self._writer(prediction, name, kind))
        return tuple(files)

    def _writer(self, prediction: Prediction, name: str, kind: str) -> Callable[[str], None]:
        if kind == 'comparison':
            assert self.annotations is not None
            annotation = self.annotations.read(prediction.source, name)
            return lambda path: Image.fromarray(comparison(prediction, annotation, name)).save(path, format='PNG')
        if kind == 'legend':
            return lambda path: Image.fromarray(draw_legend(prediction.legend())).save(path, format='PNG')
        return lambda path: prediction.write(path, kind, self.opacity)


def comparison(prediction: Prediction, annotation: np.ndarray, caption: str) -> np.ndarray:
    """Draw image, annotation, prediction and errors side by side, with a legend below.

    Args:
        prediction: for an image.
        annotation: (H, W) labels of the same image; 255 marks ignored pixels.
        caption: text below the pictures.

    Returns:
        (H', W', 3) uint8 RGB.

    Raises:
        UserError: the annotation has another size, or labels outside the
            classes.
    """
    labels, classes = prediction.labels, prediction.classes
    if annotation.shape != labels.shape:
        raise UserError(f'{prediction.source}: annotation of size {annotation.shape}, expected {labels.shape}')
    check_labels(annotation, len(classes), 255, f'the annotation of {prediction.source}')
    palette = classes.palette.tolist()
    image = np.ascontiguousarray(prediction.image.rgb)
    small = fit(image, min(_COMPARISON_SIDE, max(image.shape)))
    valid = annotation != 255
    right = np.count_nonzero((annotation == labels) & valid) / max(np.count_nonzero(valid), 1)
    titles = ['image', 'annotation', 'prediction', f'errors ({right:.1%} right)']
    row = prediction_row(caption, small, labels, palette, annotation, with_errors=True)
    return contact_sheet([row._replace(caption=caption)], titles, classes.names, palette, marks=True)


def draw_legend(entries: Sequence[LegendEntry]) -> np.ndarray:
    """Draw the classes of a prediction in their colours, with their shares, the largest first.

    Args:
        entries: as :meth:`Prediction.legend` returns them.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    line, names = 26, 108  # pixels: height of a line, and where names begin
    height = line * len(entries) + 10
    width = names + 9 * max(len(entry.name) for entry in entries) + 12
    picture = np.full((height, width, 3), 255, np.uint8)
    for i, entry in enumerate(entries):
        top = 8 + i * line
        cv2.rectangle(picture, (8, top), (36, top + 16), entry.colour, cv2.FILLED)
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    canvas = FigureCanvasAgg(figure)
    figure.figimage(picture)
    for i, entry in enumerate(entries):
        y = 1 - (16 + i * line) / height
        for x, text, align in ((names, entry.name, 'left'), (names - 10, _percent(entry.share), 'right')):
            figure.text(x / width, y, text, size=13, va='center', ha=align, parse_math=False)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def _percent(share: float) -> str:
    return '< 0.1 %' if share < 0.001 else f'{share:.1%}'.replace('%', ' %')
