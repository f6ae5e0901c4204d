"""Read image files that may be damaged, or made to do damage."""

import io
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import mmcv
import numpy as np
from mmengine import fileio
from mmengine.fileio import LocalBackend
from PIL import Image, UnidentifiedImageError

from ..errors import BadSampleError, describe
from ..files import check_regular

# Pixels of the largest image that a dataset may hold by default: 0.8 GB as 8-bit colour, in each loader process.
MAX_PIXELS = 1 << 28
# Bytes of the largest file: those pixels in four channels of 16 bits, not compressed.
MAX_BYTES = 8 * MAX_PIXELS
JPEG, PNG = b'\xff\xd8', b'\x89PNG\r\n\x1a\n'
# Markers of frames in JPEG: all of 0xC0 to 0xCF but tables (C4, CC) and the reserved C8.
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_POSTSCRIPT = (b'%!PS', b'\xc5\xd0\xd3\xc6')


@dataclass
class _Limit:
    """Pillow's own limit, while it is lifted."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0
    value: int | None = None


_PILLOW_LIMIT = _Limit()


@contextmanager
def no_pillow_limit() -> Iterator[None]:
    """Let Pillow read images of any size.

    Its limit, a global of all threads, is lower than ours. It is restored when the last thread leaves.
    """
    with _PILLOW_LIMIT.lock:
        if _PILLOW_LIMIT.users == 0:
            _PILLOW_LIMIT.value, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _PILLOW_LIMIT.users += 1
    try:
        yield
    finally:
        with _PILLOW_LIMIT.lock:
            _PILLOW_LIMIT.users -= 1
            if _PILLOW_LIMIT.users == 0:
                Image.MAX_IMAGE_PIXELS = _PILLOW_LIMIT.value


def open_image(source: bytes | BinaryIO) -> Image.Image:
    """Read the header of an image with Pillow.

    Args:
        source: the content of a file, or the file, open at its first byte.

    Raises:
        UnidentifiedImageError: not an image, or PostScript, which is a program: Pillow would run it in Ghostscript.
        Image.DecompressionBombError: the image is larger than Pillow's limit.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    start = file.read(4)
    file.seek(0)
    if start.startswith(_POSTSCRIPT):
        raise UnidentifiedImageError('PostScript is not read')
    return Image.open(file)


def read_file(path: str, backend_args: dict[str, Any] | None = None, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the content of a file.

    Args:
        path: local, or of a file backend of mmengine.
        backend_args: as in ``mmengine.fileio.get``.
        max_bytes: larger local files are refused before they are read.

    Raises:
        BadSampleError: there is no such file, it is empty, too large, cannot be read, or is something else: a folder,
            or a pipe, which would never end. The message begins with the path.
    """
    backend = fileio.get_file_backend(path, backend_args=backend_args, enable_singleton=True)
    try:
        if isinstance(backend, LocalBackend):
            size = check_regular(path).st_size
            if size > max_bytes:
                raise BadSampleError(f'{path} has {size:,} bytes, expected at most {max_bytes:,}')
        content = backend.get(path)
    except FileNotFoundError:
        raise BadSampleError(f'{path} not found (working directory: {os.getcwd()})') from None
    except OSError as error:
        raise BadSampleError(f'{path} cannot be read: {error.strerror or error}') from None
    if not content:
        raise BadSampleError(f'{path} is empty (0 bytes)')
    return content


@contextmanager
def entries_named(*entries: str) -> Iterator[None]:
    """Add the entries of the config that decide which file is read to the message of a bad sample."""
    try:
        yield
    except BadSampleError as error:
        raise BadSampleError(f'{error}; see {" and ".join(entries)} in the config') from None


def check_pixels(content: bytes, path: str, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse an image that declares too many pixels, before it is decoded.

    Formats that Pillow does not know pass. OpenCV's limit for them is 2^30 pixels.

    Raises:
        BadSampleError: it does, or it is PostScript. The message begins with the path.
    """
    size = _size_in_header(content)
    if size is None:
        try:
            with no_pillow_limit():
                size = open_image(content).size
        except Exception as error:  # decoders raise all kinds
            if content.startswith(_POSTSCRIPT):
                raise BadSampleError(f'{path} ({len(content):,} bytes) is not a readable image: {error}') from None
            return
    width, height = size
    if width * height > max_pixels:
        raise BadSampleError(f'{path} has {width}x{height} pixels, expected at most {max_pixels:,} (max_pixels)')
    if content.startswith(PNG):
        _check_packed_pixels(content, path, width, height)


def _check_packed_pixels(content: bytes, path: str, width: int, height: int) -> None:
    """Refuse a PNG with more packed pixels than its size needs: libpng inflates them all, a thousand times as many."""
    depth, channels = content[24], {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(content[25], 4)
    # Each row has a byte more, interlaced images have more rows, and what cannot be packed grows by less than 1 %.
    most = ((width * channels * depth + 7) // 8 + 1) * (height + 8) * 101 // 100 + (1 << 16)
    if len(content) <= most:
        return
    position, packed = 8, 0
    while position + 12 <= len(content):
        length, kind = struct.unpack_from('>I4s', content, position)
        packed += length if kind == b'IDAT' else 0
        position += 12 + length
    if packed > most:
        raise BadSampleError(
            f'{path} has {packed:,} bytes of packed pixels, expected at most {most:,} for {width}x{height} pixels'
        )


def decode(content: bytes, path: str, flag: str, backend: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode the content of an image file as mmcv does, if it is whole and not too large.

    Args:
        content: the bytes of the file.
        path: of the file, for messages.
        flag: as in ``mmcv.imfrombytes``.
        backend: as in ``mmcv.imfrombytes``.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        BadSampleError: the image is too large, incomplete or cannot be decoded. The message begins with the path.
    """
    check_pixels(content, path, max_pixels)
    with no_pillow_limit():
        # OpenCV may fill the end of these two formats with grey. It refuses other incomplete files.
        if content.startswith((JPEG, PNG)) and (truncation := why_truncated(content)):
            raise BadSampleError(f'{path} ({len(content):,} bytes) is incomplete: {truncation}')
        try:
            image = mmcv.imfrombytes(content, flag=flag, backend=backend)
        except Exception as error:  # decoders raise all kinds
            reason = 'unknown format' if isinstance(error, UnidentifiedImageError) else describe(error)
            raise BadSampleError(f'{path} ({len(content):,} bytes) is not a readable image: {reason}') from None
    if image is None:
        raise BadSampleError(f'{path} ({len(content):,} bytes) is not a readable image')
    return image


def _size_in_header(content: bytes) -> tuple[int, int] | None:
    """Return width and height of a PNG or JPEG in a tenth of the time that Pillow takes, None if that is not certain.

    A JPEG is a chain of segments, and the first one that begins a frame has its size.
    """
    if content.startswith(PNG) and content[12:16] == b'IHDR' and len(content) >= 24:
        return struct.unpack_from('>II', content, 16)
    position = 2 if content.startswith(JPEG) else len(content)
    while position + 9 <= len(content) and content[position] == 0xFF:
        kind = content[position + 1]
        if kind in _START_OF_FRAME:
            height, width = struct.unpack_from('>HH', content, position + 5)
            return width, height
        if not 0xC0 <= kind < 0xFF or 0xD0 <= kind <= 0xDA:  # no segment, or the pixels
            return None
        position += 2 + int.from_bytes(content[position + 2 : position + 4], 'big')
    return None


def why_truncated(content: bytes) -> str:
    """Return why the content of an image file is incomplete, '' if it is not.

    Some decoders fill missing pixels with grey without an error.
    """
    # A file that ends with its end marker is complete and need not be decoded. Pillow decides about files of cameras
    # that write more behind it.
    end = content[-64:].rstrip(b'\0')
    if (content.startswith(JPEG) and end.endswith(b'\xff\xd9')) or (content.startswith(PNG) and b'IEND' in end):
        return ''
    if not content:
        return '0 bytes'
    try:
        open_image(content).load()
    except (UnidentifiedImageError, Image.DecompressionBombError):
        return ''  # another decoder may know it
    except Exception as error:  # decoders raise all kinds
        return describe(error)
    return ''
