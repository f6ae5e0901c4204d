"""Read images of any kind as a person sees them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..datasets.image_files import MAX_BYTES, MAX_PIXELS, check_pixels, no_pillow_limit, open_image
from ..errors import UserError, describe
from .storage import read_bytes


@dataclass(frozen=True)
class InputImage:
    """A decoded image and where it comes from.

    Attributes:
        bgr: (H, W, 3) uint8, channels in the order of OpenCV and mmseg.
        source: path, URI or another name, for messages and file names.
    """

    bgr: np.ndarray
    source: str

    @property
    def rgb(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB, a view."""
        return self.bgr[..., ::-1]


def read_image(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> InputImage:
    """Read an image file, see :func:`decode_image`.

    Args:
        path: a local file, or a URI (``https://``, ``s3://``, ...).
        max_pixels: larger images are refused before they are decoded.

    Raises:
        MissingFileError: no such file.
        MissingPackageError: a package that the URI needs is not installed.
        UserError: the file is not a readable image, or too large.
    """
    return decode_image(read_bytes(os.fspath(path), MAX_BYTES), os.fspath(path), max_pixels)


def decode_image(content: bytes, source: str, max_pixels: int = MAX_PIXELS) -> InputImage:
    """Decode an image as a viewer would show it.

    The orientation of EXIF is applied; grey, palette, CMYK and images of 16
    bits become 8-bit colour; transparent pixels are laid over white; of an
    animation the first frame is taken. Plain 8-bit images are decoded by
    OpenCV, as mmseg does in training and testing, so their pixels are the same.

    Args:
        content: the bytes of the file.
        source: name for messages and results.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        UserError: not a readable image, cut short, or too large.
    """
    check_pixels(content, source, max_pixels)
    with decoding(source, len(content)), no_pillow_limit(), open_image(content) as image:
        if _opencv_agrees(image) and _has_end_marker(content, image.format):
            bgr = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
            if bgr is not None:
                return InputImage(bgr, source)
        return InputImage(to_bgr(image), source)


def as_input_image(image: Any, channel_order: str = 'bgr', max_pixels: int = MAX_PIXELS) -> InputImage:
    """Turn whatever a caller has into an :class:`InputImage`.

    Args:
        image: a path, a PIL image, an (H, W), (H, W, 1), (H, W, 3) or
            (H, W, 4) array of uint8, or an :class:`InputImage`.
        channel_order: ``'bgr'`` (as ``cv2.imread`` and ``mmcv.imread`` give) or ``'rgb'``, of
            arrays.
        max_pixels: limit for files.

    Raises:
        UserError: an array of another shape or type, or as :func:`read_image`.
        TypeError: something else.
    """
    if isinstance(image, InputImage):
        return image
    if isinstance(image, str | os.PathLike):
        return read_image(image, max_pixels)
    if isinstance(image, Image.Image):
        name = getattr(image, 'filename', '') or 'PIL image'
        return InputImage(to_bgr(image), name)
    if not isinstance(image, np.ndarray):
        raise TypeError(f'image of type {type(image).__name__}; expected a path, a NumPy array or a PIL image')
    if channel_order not in ('bgr', 'rgb'):
        raise UserError(f"channel_order={channel_order!r}; expected 'bgr' or 'rgb'")
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise UserError(f'array of shape {image.shape} and type {image.dtype}; expected (H, W) or (H, W, 3) of uint8')
    if 0 in image.shape:
        raise UserError(f'array of shape {image.shape} has no pixels')
    image = image[..., None] if image.ndim == 2 else image
    image = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[..., :3]
    image = image if channel_order == 'bgr' else image[..., ::-1]
    return InputImage(np.require(image, requirements=['C', 'W']), 'array')


@contextmanager
def decoding(source: str, size: int) -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError:
        raise UserError(f'{source} ({size:,} bytes) is not an image of a known format') from None
    except UserError:
        raise
    except Exception as error:  # decoders raise all kinds
        raise UserError(f'{source} ({size:,} bytes) is not a readable image: {describe(error)}') from None


def _opencv_agrees(image: Image.Image) -> bool:
    """Return whether OpenCV decodes the image to what a viewer shows."""
    return image.format in ('JPEG', 'PNG', 'BMP') and image.mode in ('RGB', 'L') and 'transparency' not in image.info


def _has_end_marker(content: bytes, kind: str | None) -> bool:
    """Return whether the file ends as a complete one; OpenCV fills what is missing with grey."""
    end = content[-64:]
    return kind == 'BMP' or (b'\xff\xd9' in end if kind == 'JPEG' else b'IEND' in end)


def to_bgr(image: Image.Image) -> np.ndarray:
    """Convert an image of any mode to (H, W, 3) uint8 BGR, upright."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ('I;16', 'I;16B', 'I;16L', 'I;16N', 'I', 'F'):
        grey = _to_8_bits(np.asarray(image))
        return np.repeat(grey[..., None], 3, axis=2)
    if 'A' in image.getbands() or 'transparency' in image.info:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return np.ascontiguousarray(np.asarray(image.convert('RGB'))[..., ::-1])


def _to_8_bits(grey: np.ndarray) -> np.ndarray:
    """Scale grey values to 0 to 255.

    Integers of 16 bits are scaled by the range of their type. Floating-point
    values are scaled by 255 if they are all within 0 to 1, which is what
    viewers expect, and by their own extremes if not.
    """
    if grey.dtype.kind == 'f':
        grey = np.where(np.isfinite(grey), grey, np.nan)
    low, high = float(np.fmin.reduce(grey, axis=None)), float(np.fmax.reduce(grey, axis=None))  # NaN only if all are
    if np.issubdtype(grey.dtype, np.integer) and low >= 0 and high <= 65535:
        # Pillow reads some 16-bit files as 32-bit integers.
        return (grey if grey.dtype != np.uint16 and high <= 255 else grey >> 8).astype(np.uint8)
    if grey.dtype.kind == 'f' and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scaled = (grey.astype(np.float32) - low) * (255 / (high - low) if high > low else 0)
    return np.nan_to_num(scaled).round().clip(0, 255).astype(np.uint8)
