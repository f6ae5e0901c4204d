"""Inspect images and masks, read as the pipeline of a dataset reads them."""

import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from mmcv.image.geometric import rescale_size
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from mmengine.dataset import BaseDataset
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image, UnidentifiedImageError

from ...errors import BadSampleError, describe
from ..colours import pack_colours, unpack_colour
from ..image_files import JPEG, MAX_PIXELS, PNG, check_pixels, open_image, read_file, why_truncated
from .configuration import ModelSettings, find_transform
from .results import SplitStatistics

_EXIF_ORIENTATION = 0x0112
_UNKNOWN = 'unknown to Pillow'


class FileInspector:
    """Read the images and masks of a dataset with the transforms of its pipeline.

    Args:
        split: ``'train'``, ``'val'`` or ``'test'``.
        dataset: a ``BaseSegDataset``.
        model: settings that the files must fit.
    """

    def __init__(self, split: str, dataset: BaseDataset, model: ModelSettings) -> None:
        self.split = split
        self.dataset = dataset
        self.model = model
        self.crop_size = _crop_size(dataset) if split == 'train' else None
        self.load_image = find_transform(dataset, LoadImageFromFile) or LoadImageFromFile()
        self.load_labels = find_transform(dataset, LoadAnnotations) or LoadAnnotations()

    def image_path(self, index: int) -> str:
        """Return the path of an image."""
        return self.dataset.get_data_info(index)['img_path']

    def inspect(self, indices: Iterable[int]) -> SplitStatistics:
        """Inspect the images with these indices, and their masks."""
        statistics = SplitStatistics()
        for index in indices:
            info = self.dataset.get_data_info(index)
            statistics.images += 1
            size = self._inspect_image(index, info['img_path'], statistics)
            if 'seg_map_path' in info:
                self._inspect_mask(info, size, statistics)
        return statistics

    def _inspect_image(self, index: int, path: str, statistics: SplitStatistics) -> tuple[int, int] | None:
        """Inspect an image and return its height and width, or None if it cannot be read."""
        try:
            content = read_file(path, self.load_image.backend_args)
            check_pixels(content, path, getattr(self.load_image, 'max_pixels', MAX_PIXELS))
        except BadSampleError as error:
            statistics.add_problem('image_unreadable', path, _reason(error, path))
            return None
        truncation = why_truncated(content)
        if truncation:
            statistics.add_problem('image_truncated', path, truncation)
        try:
            image = self.load_image.transform(dict(img_path=path))['img']
        except Exception as error:  # decoders raise all kinds
            if not truncation:
                statistics.add_problem('image_unreadable', path, _reason(error, path))
            return None
        header = _read_header(content)
        statistics.image_modes[header.mode] += 1
        if header.rotated and 'ignore_orientation' not in self.load_image.color_type:
            statistics.add_problem('image_rotated', path)
        if header.has_16_bits and image.dtype == np.uint8:
            statistics.add_problem('image_cut_to_8_bits', path)
        H, W = image.shape[:2]
        statistics.add_size(H, W)
        statistics.max_value = max(statistics.max_value, float(image.max(initial=0)))
        channels = image.shape[2] if image.ndim == 3 else 1
        if self.model.in_channels not in (None, channels):
            statistics.add_problem('image_channels', path, f'{channels} instead of {self.model.in_channels}')
        self._check_crop(path, H, W, statistics)
        if not truncation:
            # Hash the pixels, not the file: a copy may have another name, format or metadata.
            digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
            digest.update(np.ascontiguousarray(image).data)
            statistics.digests[index] = digest.digest()
        return H, W

    def _check_crop(self, path: str, H: int, W: int, statistics: SplitStatistics) -> None:
        if self.crop_size is None:
            return
        h, w = self._size_before_crop(H, W)
        if h < self.crop_size[0] or w < self.crop_size[1]:
            resized = '' if (h, w) == (H, W) else f', resized to {h}x{w}'
            statistics.add_problem('smaller_than_crop', path, f'{H}x{W}{resized}')

    def _size_before_crop(self, H: int, W: int) -> tuple[int, int]:
        """Return the size that the pipeline resizes an image to, in the middle of a random range."""
        for transform in self.dataset.pipeline.transforms:
            if hasattr(transform, 'crop_size'):
                break
            scale = getattr(transform, 'scale', None)
            if not isinstance(scale, tuple) or not all(isinstance(side, int) for side in scale):
                continue
            resize = getattr(transform, 'resize', transform)  # RandomResize has a Resize
            W, H = rescale_size((W, H), scale) if getattr(resize, 'keep_ratio', False) else scale
        return H, W

    def _inspect_mask(self, info: dict[str, Any], image_size: tuple[int, int] | None, to: SplitStatistics) -> None:
        path = info['seg_map_path']
        if not fileio.exists(path, backend_args=self.load_labels.backend_args):
            to.add_problem('image_without_mask', info['img_path'], f'no {path}')
            return
        try:
            content = read_file(path, self.load_labels.backend_args)
            check_pixels(content, path, getattr(self.load_labels, 'max_pixels', MAX_PIXELS))
        except BadSampleError as error:
            to.add_problem('mask_unreadable', path, _reason(error, path))
            return
        mode, stored, truncation = _decode(content)
        if truncation:
            to.add_problem('mask_truncated', path, truncation)
            return
        to.mask_modes[mode] += 1
        if content.startswith(JPEG):
            to.add_problem('mask_jpeg', path)
        if stored is not None and stored.ndim == 2:
            to.values_in_masks.update(_histogram(stored))
        elif stored is not None:
            to.add_problem('mask_colour', path, f'{mode}, {_describe_colours(stored)}')
            return
        try:
            labels = self.load_labels.transform(info)['gt_seg_map']
        except Exception as error:  # decoders raise all kinds
            to.add_problem('mask_unreadable', path, _reason(error, path))
            return
        if labels.ndim != 2:
            to.add_problem('mask_colour', path, f'{mode}, read as {labels.shape[2]} channels')
            return
        if image_size is not None and labels.shape != image_size:
            (h, w), (H, W) = labels.shape, image_size
            to.add_problem('size_mismatch', path, f'mask {h}x{w}, image {H}x{W}')
        if stored is not None and type(self.load_labels) is LoadAnnotations and stored.max(initial=0) > 255:
            to.add_problem('labels_cut_to_8_bits', path, f'largest value {stored.max()}')
            return
        self._count_labels(path, labels, stored, to)

    def _count_labels(self, path: str, labels: np.ndarray, stored: np.ndarray | None, to: SplitStatistics) -> None:
        pixels = _histogram(labels)
        to.label_pixels.update(pixels)
        to.label_images.update(pixels.keys())
        ignored = self.model.ignore_index
        outside = [label for label in pixels if label >= self.model.num_classes and label != ignored]
        if outside:
            shown = ', '.join(_describe_label(label, labels, stored) for label in outside[:5])
            to.add_problem('labels_outside', path, shown + (', ...' if len(outside) > 5 else ''))
        elif pixels.keys() == {ignored}:
            to.add_problem('mask_all_ignored', path)


def _crop_size(dataset: BaseDataset) -> tuple[int, int] | None:
    """Return height and width of the first crop of a pipeline, None if there is none."""
    sizes = (getattr(transform, 'crop_size', None) for transform in dataset.pipeline.transforms)
    return next((size for size in sizes if isinstance(size, tuple)), None)


class _Header(NamedTuple):
    mode: str  # Pillow's
    has_16_bits: bool  # per channel
    rotated: bool  # by the EXIF orientation


def _read_header(content: bytes) -> _Header:
    try:
        with open_image(content) as image:
            mode, rotated = image.mode, image.getexif().get(_EXIF_ORIENTATION, 1) not in (0, 1)
    except Exception:  # decoders raise all kinds
        return _Header(_UNKNOWN, False, False)
    # The mode of a 16-bit colour PNG is 'RGB'; byte 24 of a PNG is its bit depth.
    return _Header(mode, mode.startswith('I;16') or (content.startswith(PNG) and content[24] == 16), rotated)


class _Decoded(NamedTuple):
    mode: str  # Pillow's
    pixels: np.ndarray | None  # (H, W) or (H, W, channels) as stored, None if Pillow cannot read them
    truncation: str  # why the file is incomplete, or ''


def _decode(content: bytes) -> _Decoded:
    if not content:
        return _Decoded('empty', None, '0 bytes')
    try:
        with open_image(content) as image:
            pixels = np.asarray(image)
            return _Decoded(image.mode, pixels.astype(np.uint8) if pixels.dtype == bool else pixels, '')
    except (UnidentifiedImageError, Image.DecompressionBombError):
        return _Decoded(_UNKNOWN, None, '')  # the pipeline may read it nevertheless
    except Exception as error:  # decoders raise all kinds
        return _Decoded(_UNKNOWN, None, describe(error))


def _histogram(array: np.ndarray) -> dict[int, int]:
    """Return the number of elements of each value."""
    if array.dtype in (np.uint8, np.uint16):
        counts = np.bincount(array.ravel())
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    values, counts = np.unique(array, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _describe_colours(image: np.ndarray) -> str:
    if image.shape[2] < 3:
        return f'{image.shape[2]} channels'
    colours = [unpack_colour(value) for value in np.unique(pack_colours(image)).tolist()]
    return f'{len(colours)} colours: {", ".join(map(str, colours[:3]))}' + (', ...' if len(colours) > 3 else '')


def _describe_label(label: int, labels: np.ndarray, stored: np.ndarray | None) -> str:
    """Return a label, with the value in the file if it differs."""
    if stored is None or stored.shape != labels.shape:
        return f'label {label}'
    value = int(stored[labels == label][0])
    return f'label {label}' if value == label else f'label {label}, in the file {value}'


def _reason(error: Exception, path: str) -> str:
    """Return the message of an error in one line, without the path."""
    return ' '.join(str(error).replace(path, '').split()).strip(': ') or type(error).__name__
