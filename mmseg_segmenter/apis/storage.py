"""Read and write files that are local or at a URI."""

import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import FileAccessError, MissingFileError, MissingPackageError, UserError
from ..files import replace_file

_TIMEOUT = 60  # seconds without an answer from an HTTP server
_CHUNK = 1 << 20
_EXTRAS = {'s3': 's3', 's3a': 's3'}  # our extra by the scheme of a URI


def is_uri(path: str) -> bool:
    """Return whether a path is a URI such as ``s3://bucket/key``."""
    scheme, found, _ = path.partition('://')
    return bool(found) and scheme.replace('+', '').replace('-', '').isalnum()


def join(folder: str, *parts: str) -> str:
    """Join a folder, local or a URI, and parts of a path."""
    return '/'.join((folder.rstrip('/'), *parts)) if is_uri(folder) else os.path.join(folder, *parts)


def file_system(uri: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URI, and the path in it.

    Raises:
        MissingPackageError: a package that the scheme needs is not installed.
        UserError: fsspec does not know the scheme.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(uri)
    except ImportError as error:
        extra = _EXTRAS.get(uri.partition('://')[0])
        advice = f": run pip install 'mmseg_segmenter[{extra}]'" if extra else ''
        raise MissingPackageError(f'{uri}: {error}{advice}') from None
    except ValueError as error:
        raise UserError(f'{uri}: {error}') from None


def read_bytes(path: str, max_bytes: int | None = None) -> bytes:
    """Read a whole file.

    Args:
        path: a local file, or a URI: ``http://`` and ``https://``, or any
            that fsspec opens.
        max_bytes: larger files are refused. Default: any size.

    Raises:
        MissingFileError: no such file.
        MissingPackageError: a package that the URI needs is not installed.
        FileAccessError: the file cannot be read.
        UserError: not a regular file, too large, or an unknown scheme.
    """
    if is_uri(path):
        return _read_uri(path, max_bytes)
    path = os.path.expanduser(path)
    if not os.path.exists(path):
        raise MissingFileError(f'{path} not found (working directory: {os.getcwd()})')
    if not os.path.isfile(path):
        raise UserError(f'{path} is not a regular file')
    with _reading(path), open(path, 'rb') as file:
        _check_size(path, os.fstat(file.fileno()).st_size, max_bytes)
        return file.read()


def _check_size(path: str, size: int, max_bytes: int | None) -> None:
    if max_bytes is not None and size > max_bytes:
        raise UserError(f'{path} has {size:,} bytes or more, expected at most {max_bytes:,}')


def _read_uri(uri: str, max_bytes: int | None) -> bytes:
    if uri.startswith(('http://', 'https://')):
        # Without fsspec, whose HTTP file system needs another package.
        request = urllib.request.Request(uri, headers={'User-Agent': 'mmseg_segmenter'})
        with _reading(uri), urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            content = bytearray()
            while chunk := response.read(_CHUNK):  # in parts: not every server says how much it sends
                content += chunk
                _check_size(uri, len(content), max_bytes)
            return bytes(content)
    fs, path = file_system(uri)
    with _reading(uri):
        if max_bytes is not None:
            _check_size(uri, fs.size(path) or 0, max_bytes)
        return fs.cat_file(path)


@contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError as error:
        kind = MissingFileError if error.code in (404, 410) else FileAccessError
        raise kind(f'cannot read {path}: HTTP status {error.code} {error.reason}') from None
    except FileNotFoundError:
        raise MissingFileError(f'{path} not found') from None
    except OSError as error:
        reason = getattr(error, 'reason', None) or error.strerror or error
        raise FileAccessError(f'cannot read {path}: {reason}') from None


def write_file(path: str, write: Callable[[str], None]) -> None:
    """Write a file, whole or not at all, in place of any that is there.

    Args:
        path: a local file, whose folder is made, or a URI that fsspec can write.
        write: writes to the local path it is given.

    Raises:
        FileAccessError: the file cannot be written; nothing is left behind.
    """
    if not is_uri(path):
        replace_file(path, write)
        return
    fs, target = file_system(path)
    with tempfile.TemporaryDirectory() as folder:
        part = os.path.join(folder, target.rsplit('/', 1)[-1])
        write(part)
        try:
            fs.makedirs(fs._parent(target), exist_ok=True)
            fs.put_file(part, target)
        except (OSError, NotImplementedError) as error:
            raise FileAccessError(f'cannot write {path}: {error}') from None


def exists(path: str) -> bool:
    """Return whether a file or folder, local or at a URI, exists."""
    if not is_uri(path):
        return os.path.exists(path)
    fs, target = file_system(path)
    with _reading(path):
        return bool(fs.exists(target))


def list_files(folder: str) -> list[str]:
    """Return the files in a folder, local or at a URI, sorted; none if there is no such folder."""
    if not is_uri(folder):
        return sorted(entry.path for entry in os.scandir(folder)) if os.path.isdir(folder) else []
    fs, target = file_system(folder)
    with _reading(folder):
        fs.invalidate_cache()
        return sorted(fs.unstrip_protocol(file) for file in fs.find(target)) if fs.exists(target) else []


def remove_files(paths: Iterable[str]) -> None:
    """Remove files, local or at URIs.

    Raises:
        FileAccessError: a file cannot be removed.
    """
    for path in paths:
        try:
            if is_uri(path):
                fs, target = file_system(path)
                fs.rm_file(target)
            else:
                os.remove(path)
        except OSError as error:
            raise FileAccessError(f'cannot remove {path}: {error.strerror or error}') from None
