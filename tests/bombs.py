"""Files of a few kilobytes that ask for gigabytes, and a process with too little memory to give them."""

import functools
import io
import os
import pickle
import resource
import select
import signal
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

MEMORY = 600 << 20  # bytes that a bomb may cost
SECONDS = 30


def with_little_memory(function: Callable[[], list[str]]) -> list[str]:
    """Return what a function returns in a forked process that may allocate ``MEMORY`` more than it has."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        try:
            lines = function()
        except BaseException as error:  # passed on to the test
            lines = [f'{type(error).__name__}: {error!r}']
        os.write(write, pickle.dumps(lines))
        os._exit(0)
    os.close(write)
    with os.fdopen(read, 'rb') as pipe:
        ended = bool(select.select([pipe], [], [], SECONDS)[0])
        if not ended:
            os.kill(pid, signal.SIGKILL)
        content = pipe.read()
    os.waitpid(pid, 0)
    assert ended, f'it takes longer than {SECONDS} s'
    assert content, 'the process died'
    lines: list[str] = pickle.loads(content)
    return lines


def zeros(megabytes: int) -> bytes:
    """Return a zlib stream of so many megabytes of zeros, a thousandth of that long."""
    packer = zlib.compressobj(9)
    first = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + again * (megabytes - 1) + b'\3\0' + struct.pack('>I', (megabytes << 20) % 65521 << 16 | 1)


def png(width: int, height: int, pixels: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    parts = [(b'IHDR', header), *chunks, (b'IDAT', pixels), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data)) for name, data in parts
    )


def tiff(width: int, height: int, strip: int, rows: int, entries: int = 8, following: int = 0) -> bytes:
    """Return a TIFF with one strip of so many bytes and rows, by its own account."""
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 134), (278, rows), (279, strip)]
    directory = b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in tags)
    return b'II*\0' + struct.pack('<IH', 8, entries) + directory + struct.pack('<I', following) + bytes(200)


def _small(format: str, mode: str = 'L') -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (8, 8)).save(buffer, format)
    return buffer.getvalue()


def _jpeg() -> bytes:
    content = _small('JPEG')
    at = content.index(b'\xff\xc0') + 5
    return content[:at] + struct.pack('>HH', 65000, 65000) + content[at + 4 :]


def _webp() -> bytes:
    canvas = struct.pack('<I', 16383)[:3] * 2
    chunk = b'VP8X' + struct.pack('<I', 10) + b'\0\0\0\0' + canvas + _small('WEBP', 'RGB')[12:]
    return b'RIFF' + struct.pack('<I', len(chunk) + 4) + b'WEBP' + chunk


# Each is refused by its size, refused as damaged, or read: a bomb beside the pixels may be left alone.
IMAGES: dict[str, Callable[[], bytes]] = {
    'huge.png': lambda: png(30000, 30000, zlib.compress(bytes(1000))),
    'real.png': lambda: png(25000, 25000, zeros(600)),
    'pixels.png': lambda: png(8, 8, zeros(2000)),
    'text.png': lambda: png(8, 8, zlib.compress(bytes(72)), (b'zTXt', b'a\0\0' + zeros(2000))),
    'profile.png': lambda: png(8, 8, zlib.compress(bytes(72)), (b'iCCP', b'a\0\0' + zeros(2000))),
    'huge.jpg': _jpeg,
    'huge.tif': lambda: tiff(30000, 30000, 900_000_000, 30000),
    'strip.tif': lambda: tiff(8, 8, 0xFFFFFFF0, 0xFFFFFFF0),
    'entries.tif': lambda: tiff(8, 8, 64, 8, entries=65535),
    'loop.tif': lambda: tiff(8, 8, 64, 8, following=8),
    'huge.gif': lambda: _small('GIF')[:6] + struct.pack('<HH', 65535, 65535) + _small('GIF')[10:],
    'huge.webp': _webp,
    'huge.bmp': lambda: _small('BMP')[:18] + struct.pack('<ii', 30000, 30000) + _small('BMP')[26:],
    'huge.hdr': lambda: b'#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 30000 +X 30000\n' + bytes(100),
    'huge.pgm': lambda: b'P5 30000 30000 255\n' + bytes(100),
}
SIZES = {'huge.png', 'real.png', 'pixels.png', 'huge.jpg', 'huge.tif', 'huge.gif', 'huge.bmp', 'huge.pgm'}


def _archive(buffer: io.BytesIO) -> zipfile.ZipFile:
    return zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED, compresslevel=1)


@functools.cache
def npz(megabytes: int) -> bytes:
    """Return an ``.npz`` with an array of so many megabytes of zeros."""
    buffer, head = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(head, dict(descr='<f4', fortran_order=False, shape=(megabytes << 18,)))
    with (
        zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open('a.npy', 'w') as member,
    ):
        member.write(head.getvalue())
        for _ in range(megabytes):
            member.write(bytes(1 << 20))
    return buffer.getvalue()


@functools.cache
def pth(megabytes: int) -> bytes:
    """Return a zip of ``torch.save`` whose pickle is so many megabytes of no-operations."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open('a/data.pkl', 'w') as member,
    ):
        member.write(b'\x80\x02')
        for _ in range(megabytes):
            member.write(b'N0' * (1 << 19))
    return buffer.getvalue()


def declared(content: bytes, size: int) -> bytes:
    """Return a zip whose list of members says that the only one unpacks to ``size`` bytes."""
    at = content.rindex(b'PK\1\2') + 24
    return content[:at] + struct.pack('<I', size) + content[at + 4 :]
