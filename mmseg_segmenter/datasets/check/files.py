"""Look at one image and its mask, read as the pipeline of a dataset reads them."""

import hashlib
import io
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mmcv.image.geometric import rescale_size
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from mmengine.dataset import BaseDataset
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image, UnidentifiedImageError

from ..colours import pack_colours, unpack_colour

# So many files are named for each problem (all are counted): what is kept does not grow with the dataset.
MAX_NAMED = 1000
_PNG = b'\x89PNG\r\n\x1a\n'
_EXIF_ORIENTATION = 0x0112


@dataclass
class FileProblem:
    """Files with the same problem.

    Attributes:
        count: how many.
        files: the first of them, with details in brackets.
    """

    count: int = 0
    files: list[str] = field(default_factory=list)

    def add(self, name: str, detail: str = '') -> None:
        self.count += 1
        if len(self.files) < MAX_NAMED:
            self.files.append(f'{name} ({detail})' if detail else name)

    def merge(self, other: 'FileProblem') -> None:
        self.count += other.count
        self.files += other.files[: MAX_NAMED - len(self.files)]


@dataclass
class SplitStatistics:
    """Sums over images, of a split or a part of it.

    Attributes:
        found: problems by kind.
        images: number of images.
        label_pixels: pixels of each label, as the model will see it.
        label_images: images with each label.
        stored: pixels of each value in the mask files.
        mask_modes: masks by Pillow's name of their mode: ``L`` grey, ``P`` palette, ``RGB``, ``I;16``, ...
        image_modes: likewise.
        heights: smallest and largest, in pixels.
        widths: likewise.
        brightest: largest pixel value.
        digests: a hash of the pixels of each image, by its index.
    """

    found: dict[str, FileProblem] = field(default_factory=dict)
    images: int = 0
    label_pixels: Counter[int] = field(default_factory=Counter)
    label_images: Counter[int] = field(default_factory=Counter)
    stored: Counter[int] = field(default_factory=Counter)
    mask_modes: Counter[str] = field(default_factory=Counter)
    image_modes: Counter[str] = field(default_factory=Counter)
    heights: tuple[int, int] | None = None
    widths: tuple[int, int] | None = None
    brightest: float = 0
    digests: dict[int, bytes] = field(default_factory=dict)

    def problem(self, kind: str, name: str, detail: str = '') -> None:
        self.found.setdefault(kind, FileProblem()).add(name, detail)

    def merge(self, other: 'SplitStatistics') -> None:
        for kind, found in other.found.items():
            self.found.setdefault(kind, FileProblem()).merge(found)
        self.images += other.images
        for name in ('label_pixels', 'label_images', 'stored', 'mask_modes', 'image_modes'):
            getattr(self, name).update(getattr(other, name))
        self.heights, self.widths = _span(self.heights, other.heights), _span(self.widths, other.widths)
        self.brightest = max(self.brightest, other.brightest)
        self.digests |= other.digests


def _span(a: tuple[int, int] | None, b: tuple[int, int] | None) -> tuple[int, int] | None:
    if a is None or b is None:
        return a or b
    return min(a[0], b[0]), max(a[1], b[1])


def transform_of(dataset: BaseDataset, kind: type, default: Any = None) -> Any:
    """First transform of a class in the pipeline of a dataset."""
    return next((t for t in dataset.pipeline.transforms if isinstance(t, kind)), default)


class Inspector:
    """Reads images and masks of a dataset by the transforms of its pipeline.

    Args:
        dataset: a built ``BaseSegDataset``.
        num_classes: labels 0 to ``num_classes - 1`` are classes.
        ignore_index: label of pixels without a class.
        in_channels: channels that the model takes.
        crop_size: height and width in pixels that images should fill, if any.
    """

    def __init__(
        self,
        dataset: BaseDataset,
        num_classes: int,
        ignore_index: int,
        in_channels: int | None = None,
        crop_size: tuple[int, int] | None = None,
    ) -> None:
        self.dataset = dataset
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.in_channels = in_channels
        self.crop_size = crop_size
        self.load_image = transform_of(dataset, LoadImageFromFile) or LoadImageFromFile()
        self.load_labels = transform_of(dataset, LoadAnnotations) or LoadAnnotations()

    def inspect(self, indices: range) -> SplitStatistics:
        """Look at some images of the dataset.

        Args:
            indices: which.
        """
        tally = SplitStatistics()
        for i in indices:
            info = self.dataset.get_data_info(i)
            tally.images += 1
            size = self._image(i, info['img_path'], tally)
            if 'seg_map_path' in info:
                self._mask(info, size, tally)
        return tally

    def _image(self, index: int, path: str, tally: SplitStatistics) -> tuple[int, int] | None:
        """Its height and width, unless it cannot be read."""
        try:
            content = fileio.get(path, backend_args=self.load_image.backend_args)
        except OSError as error:
            tally.problem('image_unreadable', path, _reason(error, path))
            return None
        cut = why_cut_short(content)
        if cut:
            tally.problem('image_truncated', path, cut)
        try:
            image = self.load_image.transform(dict(img_path=path))['img']
        except Exception as error:  # whatever a decoder raises
            if not cut:
                tally.problem('image_unreadable', path, _reason(error, path))
            return None
        mode, bits16, rotated = _header(content)
        tally.image_modes[mode] += 1
        if rotated and 'ignore_orientation' not in self.load_image.color_type:
            tally.problem('image_rotated', path)
        if bits16 and image.dtype == np.uint8:
            tally.problem('image_cut_to_8_bits', path)
        H, W = image.shape[:2]
        tally.heights, tally.widths = _span(tally.heights, (H, H)), _span(tally.widths, (W, W))
        tally.brightest = max(tally.brightest, float(image.max(initial=0)))
        channels = image.shape[2] if image.ndim == 3 else 1
        if self.in_channels not in (None, channels):
            tally.problem('image_channels', path, f'{channels} instead of {self.in_channels}')
        if self.crop_size is not None:
            h, w = self._size_before_crop(H, W)
            if h < self.crop_size[0] or w < self.crop_size[1]:
                resized = '' if (h, w) == (H, W) else f', resized to {h}x{w}'
                tally.problem('smaller_than_crop', path, f'{H}x{W}{resized}')
        if not cut:
            # by content: the same photograph under another name, or saved without its metadata
            digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
            digest.update(np.ascontiguousarray(image).data)
            tally.digests[index] = digest.digest()
        return H, W

    def _size_before_crop(self, H: int, W: int) -> tuple[int, int]:
        """Height and width that the pipeline resizes to, at the middle of its range."""
        for transform in self.dataset.pipeline.transforms:
            if hasattr(transform, 'crop_size'):
                break
            scale = getattr(transform, 'scale', None)
            if not isinstance(scale, tuple) or not all(isinstance(side, int) for side in scale):
                continue
            resize = getattr(transform, 'resize', transform)  # RandomResize has a Resize
            W, H = rescale_size((W, H), scale) if getattr(resize, 'keep_ratio', False) else scale
        return H, W

    def _mask(self, info: dict[str, Any], size: tuple[int, int] | None, tally: SplitStatistics) -> None:
        path = info['seg_map_path']
        if not fileio.exists(path, backend_args=self.load_labels.backend_args):
            tally.problem('image_without_mask', info['img_path'], f'no {path}')
            return
        try:
            content = fileio.get(path, backend_args=self.load_labels.backend_args)
        except OSError as error:
            tally.problem('mask_unreadable', path, _reason(error, path))
            return
        mode, stored, cut = _decode(content)
        if cut:
            tally.problem('mask_truncated', path, cut)
            return
        tally.mask_modes[mode] += 1
        if content.startswith(b'\xff\xd8'):
            tally.problem('mask_jpeg', path)
        if stored is not None and stored.ndim == 2:
            tally.stored.update(_histogram(stored))
        elif stored is not None:
            tally.problem('mask_colour', path, f'{mode}, {_colours(stored)}')
            return
        try:
            labels = self.load_labels.transform(info)['gt_seg_map']
        except Exception as error:  # whatever a decoder raises
            tally.problem('mask_unreadable', path, _reason(error, path))
            return
        if labels.ndim != 2:
            tally.problem('mask_colour', path, f'{mode}, read as {labels.shape[2]} channels')
            return
        if size is not None and labels.shape != size:
            (h, w), (H, W) = labels.shape, size
            tally.problem('size_mismatch', path, f'mask {h}x{w}, image {H}x{W}')
        if stored is not None and type(self.load_labels) is LoadAnnotations and stored.max(initial=0) > 255:
            tally.problem('labels_cut_to_8_bits', path, f'largest value {stored.max()}')
            return
        pixels = _histogram(labels)
        tally.label_pixels.update(pixels)
        tally.label_images.update(pixels.keys())
        outside = [v for v in pixels if v >= self.num_classes and v != self.ignore_index]
        if outside:
            shown = ', '.join(_label(v, labels, stored) for v in outside[:5]) + (', ...' if len(outside) > 5 else '')
            tally.problem('labels_outside', path, shown)
        elif pixels.keys() == {self.ignore_index}:
            tally.problem('mask_all_ignored', path)


def why_cut_short(content: bytes) -> str:
    """Reason why the content of an image file is incomplete, else ''.

    Decoders differ: some fill what is missing with grey and say nothing.
    """
    # The end marker stands where it should: no need to decode. What some cameras write behind it is decided by Pillow.
    if content.startswith(b'\xff\xd8') and content[-64:].rstrip(b'\0').endswith(b'\xff\xd9'):
        return ''
    return _decode(content)[2]


def _header(content: bytes) -> tuple[str, bool, bool]:
    """Pillow's mode, whether there are 16 bits per channel, and whether EXIF says to rotate."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            mode, rotated = image.mode, image.getexif().get(_EXIF_ORIENTATION, 1) not in (0, 1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return 'unknown to Pillow', False, False
    # Pillow calls a 16-bit colour PNG 'RGB'; byte 24 of a PNG is its bit depth.
    return mode, mode.startswith('I;16') or (content.startswith(_PNG) and content[24] == 16), rotated


def _decode(content: bytes) -> tuple[str, np.ndarray | None, str]:
    """Pillow's mode, (H, W) or (H, W, channels) as in the file, and why it is cut short, else ''."""
    if not content:
        return 'empty', None, '0 bytes'
    try:
        with Image.open(io.BytesIO(content)) as image:
            array = np.asarray(image)
            return image.mode, array.astype(np.uint8) if array.dtype == bool else array, ''
    except (UnidentifiedImageError, Image.DecompressionBombError):
        return 'unknown to Pillow', None, ''  # the transform of the config decides
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        return 'unknown', None, str(error)


def _histogram(array: np.ndarray) -> dict[int, int]:
    if array.dtype in (np.uint8, np.uint16):
        counts = np.bincount(array.ravel())
        return {int(v): int(counts[v]) for v in np.flatnonzero(counts)}
    values, counts = np.unique(array, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _colours(image: np.ndarray) -> str:
    if image.shape[2] < 3:
        return f'{image.shape[2]} channels'
    colours = [unpack_colour(value) for value in np.unique(pack_colours(image)).tolist()]
    return f'{len(colours)} colours: {", ".join(map(str, colours[:3]))}' + (', ...' if len(colours) > 3 else '')


def _label(value: int, labels: np.ndarray, stored: np.ndarray | None) -> str:
    if stored is None or stored.shape != labels.shape:
        return f'label {value}'
    found = int(stored[labels == value][0])
    return f'label {value}' if found == value else f'label {value}, in the file {found}'


def _reason(error: Exception, path: str) -> str:
    """One line without the path, which stands before it."""
    return ' '.join(str(error).replace(path, '').split()).strip(': ') or type(error).__name__
