"""Read image files that may be damaged, or made to do damage."""

import io
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mmcv
import numpy as np
from mmengine import fileio
from mmengine.fileio import LocalBackend
from PIL import Image, UnidentifiedImageError

from ..errors import BadSampleError

# Pixels of the largest image that a dataset may hold by default: 0.8 GB as 8-bit colour, in each loader process.
MAX_PIXELS = 1 << 28
JPEG, PNG = b'\xff\xd8', b'\x89PNG\r\n\x1a\n'
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


def open_image(content: bytes) -> Image.Image:
    """Read the header of an image with Pillow.

    Raises:
        UnidentifiedImageError: not an image, or PostScript, which is a program: Pillow would run it in Ghostscript.
        Image.DecompressionBombError: the image is larger than Pillow's limit.
    """
    if content.startswith(_POSTSCRIPT):
        raise UnidentifiedImageError('PostScript is not read')
    return Image.open(io.BytesIO(content))


def read_file(path: str, backend_args: dict[str, Any] | None = None) -> bytes:
    """Return the content of a file.

    Args:
        path: local, or of a file backend of mmengine.
        backend_args: as in ``mmengine.fileio.get``.

    Raises:
        BadSampleError: there is no such file, it is empty, cannot be read, or is something else: a folder, or a pipe,
            which would never end. The message begins with the path.
    """
    backend = fileio.get_file_backend(path, backend_args=backend_args, enable_singleton=True)
    try:
        if isinstance(backend, LocalBackend) and not stat.S_ISREG(os.stat(path).st_mode):
            raise BadSampleError(f'{path} is a {"folder" if os.path.isdir(path) else "pipe or device"}, not a file')
        content = backend.get(path)
    except FileNotFoundError:
        raise BadSampleError(f'{path} not found (working directory: {os.getcwd()})') from None
    except OSError as error:
        raise BadSampleError(f'{path} cannot be read: {error.strerror or error}') from None
    if not content:
        raise BadSampleError(f'{path} is empty (0 bytes)')
    return content


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
    with no_pillow_limit():
        try:
            width, height = open_image(content).size
        except (OSError, SyntaxError, ValueError) as error:
            if content.startswith(_POSTSCRIPT):
                raise BadSampleError(f'{path} ({len(content):,} bytes) is not a readable image: {error}') from None
            width, height = 0, 0  # mmcv's backends know formats that Pillow does not, and have limits of their own
        if width * height > max_pixels:
            raise BadSampleError(f'{path} has {width}x{height} pixels, expected at most {max_pixels:,} (max_pixels)')
        # OpenCV may fill the end of these two formats with grey. It refuses other incomplete files.
        if content.startswith((JPEG, PNG)) and (truncation := why_truncated(content)):
            raise BadSampleError(f'{path} ({len(content):,} bytes) is incomplete: {truncation}')
        try:
            image = mmcv.imfrombytes(content, flag=flag, backend=backend)
        except Exception as error:  # decoders raise all kinds
            raise BadSampleError(f'{path} ({len(content):,} bytes) is not a readable image: {error}') from None
    if image is None:
        raise BadSampleError(f'{path} ({len(content):,} bytes) is not a readable image')
    return image


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
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        return str(error)
    return ''
