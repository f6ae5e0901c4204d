"""Read what visitors upload: within limits, as an image or not at all, without leaving a file behind."""

import contextlib
import io
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from PIL import Image

from ..apis import InputImage
from ..apis.images import decode_image, decoding
from ..datasets.image_files import no_pillow_limit
from ..errors import UserError

# What browsers and cameras write. Pillow knows more formats, some of which start other programs.
FORMATS = ('AVIF', 'BMP', 'GIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')
_MAX_AGE = 600  # seconds until an upload that nobody asked about is removed
_NAME_LENGTH = 80


class Limits(NamedTuple):
    """What a page accepts.

    Attributes:
        megabytes: of a file, in 10^6 bytes.
        megapixels: of an image.
    """

    megabytes: float = 32
    megapixels: float = 50

    @property
    def bytes(self) -> int:
        """Size of a file in bytes."""
        return int(self.megabytes * 1e6)


DEFAULT_LIMITS = Limits()


def read_upload(path: str, folder: str, name: str, limits: Limits) -> InputImage:
    """Read an uploaded image, and remove its file.

    Args:
        path: of the file, as the browser says it.
        folder: of all uploads; a path outside is refused.
        name: of the file on the visitor's computer, for messages.
        limits: on its size.

    Raises:
        UserError: not an upload, not an image, or too large.
    """
    path, folder = os.path.realpath(path), os.path.realpath(folder)
    if not path.startswith(folder + os.sep) or not os.path.isfile(path):
        raise UserError('the uploaded file is no longer here; open the image again')
    try:
        with open(path, 'rb') as file:
            content = file.read(limits.bytes + 1)
    finally:
        os.remove(path)
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(path))
    return decode(content, printable(name), limits)


def decode(content: bytes, name: str, limits: Limits) -> InputImage:
    """Decode the bytes of an image.

    Args:
        content: the bytes.
        name: for messages.
        limits: on the size.

    Raises:
        UserError: not an image of one of :data:`FORMATS`, damaged, or too large.
    """
    if len(content) > limits.bytes:
        raise UserError(f'{name}: expected at most {limits.megabytes:g} MB')
    Image.init()
    formats = [kind for kind in FORMATS if kind in Image.OPEN]  # AVIF is optional
    with decoding(name, len(content)), no_pillow_limit(), Image.open(io.BytesIO(content), formats=formats) as image:
        width, height = image.size
    if width * height > limits.megapixels * 1e6:
        found = f'{width} x {height} pixels ({width * height / 1e6:.0f} megapixels)'
        raise UserError(f'{name}: {found}; expected at most {limits.megapixels:g} megapixels')
    return decode_image(content, name)


def printable(name: str) -> str:
    """Return a file name without line breaks and other control characters, shortened if it is long."""
    name = ''.join(character if character.isprintable() else ' ' for character in name).strip() or 'image'
    return name if len(name) <= _NAME_LENGTH else f'{name[: _NAME_LENGTH - 1]}…'


@contextmanager
def temporary_files() -> Iterator[str]:
    """Make a folder for all temporary files of this process, and remove it at the end.

    What lies in it for ten minutes is removed before: uploads of pages that
    were closed, and those that broke off.

    Yields:
        The folder.
    """
    before, stopped = tempfile.tempdir, threading.Event()
    with tempfile.TemporaryDirectory(prefix='mmseg_segmenter_app_', ignore_cleanup_errors=True) as folder:
        tempfile.tempdir = folder
        threading.Thread(target=_remove_old, args=(folder, stopped), daemon=True).start()
        try:
            yield folder
        finally:
            stopped.set()
            tempfile.tempdir = before


def _remove_old(folder: str, stopped: threading.Event) -> None:
    while not stopped.wait(60):
        remove_older(folder, time.time() - _MAX_AGE)


def remove_older(folder: str, when: float) -> None:
    """Remove the files below a folder that were last written before a time, and folders that are empty.

    Args:
        folder: stays itself.
        when: seconds since the epoch.
    """
    for root, folders, files in os.walk(folder, topdown=False):
        for path in (os.path.join(root, name) for name in files):
            with contextlib.suppress(OSError):
                if os.path.getmtime(path) < when:
                    os.remove(path)
        for path in (os.path.join(root, name) for name in folders):
            with contextlib.suppress(OSError):
                if os.path.getmtime(path) < when:
                    os.rmdir(path)
