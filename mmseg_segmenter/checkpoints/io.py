"""Read foreign files without executing anything in them; write ours whole or not at all."""

import errno
import hashlib
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..compat import load_from_local


def read_tensors(path: str) -> dict[str, Tensor]:
    """Tensors of a checkpoint file, by its suffix ``.npz``, ``.safetensors`` or torch.

    A torch file may hold the tensors below ``state_dict`` (OpenMMLab) or
    ``model`` (DeiT, official Segmenter).

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, refused or without tensors; names the file.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'{path} not found (working directory: {os.getcwd()})')
    if path.endswith('.npz'):
        return read_npz(path)
    if path.endswith('.safetensors'):
        return _read_safetensors(path)
    content = load_from_local(path, map_location='cpu')
    for key in ('state_dict', 'model'):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()) or not content:
        found = ', '.join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f'{path}: expected tensors by name, below "state_dict", "model" or directly; found {found}')
    return dict(content)


def read_npz(path: str) -> dict[str, Tensor]:
    """Arrays of an ``.npz`` file as tensors, without copies.

    Raises:
        ValueError: not an ``.npz`` file, cut short, or with pickled objects
            (which are refused: unpickling runs code).
    """
    size = f'{os.path.getsize(path):,} bytes'
    if not zipfile.is_zipfile(path):
        raise ValueError(f'{path} ({size}) is not an .npz file; it may be incomplete or another kind of file')
    tensors = {}
    key = ''
    try:
        with np.load(path, allow_pickle=False) as file:
            for key in file.files:
                array = file[key]
                if array.dtype.kind not in 'fiub':
                    raise ValueError(f'{path}: array {key!r} has dtype {array.dtype}, expected numbers')
                tensors[key] = torch.from_numpy(array)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(f'{path} ({size}) is damaged at {key!r} ({error})') from None
    except ValueError as error:
        if 'allow_pickle' in str(error):
            raise ValueError(f'{path}: refused, array {key!r} is a pickled object') from None
        raise
    return tensors


def _read_safetensors(path: str) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise ImportError(f'{path}: run pip install safetensors to read it') from None
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f'{path} ({os.path.getsize(path):,} bytes) is not a readable checkpoint ({error})') from None


def sha256(path: str) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def provenance(source: str, architecture: object) -> dict[str, str]:
    """The ``meta`` of a converted checkpoint: what it was made of, and by what."""
    return dict(
        source=os.path.basename(source),
        sha256=sha256(source),
        architecture=str(architecture),
        converter=f'mmseg_segmenter {__version__}',
    )


def refuse_existing(path: str, force: bool) -> None:
    """Is the destination free?

    Raises:
        FileExistsError: ``path`` exists and ``force`` is not set.
        IsADirectoryError: ``path`` is a folder.
    """
    if os.path.isdir(path):
        raise IsADirectoryError(f'{path} is a folder, expected the name of a file')
    if os.path.exists(path) and not force:
        raise FileExistsError(f'{path} exists; use --force to replace it')


def check_destination(path: str, suffix: str = '') -> None:
    """Fail before hours of work, not when their result is written. Nothing is made.

    Args:
        path: file to be written; its folder need not exist.
        suffix: that the name must have.

    Raises:
        ValueError: ``path`` is a folder, or has another suffix.
        OSError: no folder can be made or written to there.
    """
    if not path.endswith(suffix) or os.path.isdir(path) or not os.path.basename(path):
        ends = f' that ends in {suffix}' if suffix else ''
        raise ValueError(f'out={path}; expected the name of a file{ends}')
    folder = os.path.abspath(os.path.dirname(path))
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    with _cannot_write(path):
        if not os.path.isdir(folder):
            raise NotADirectoryError(errno.ENOTDIR, f'{folder} is not a folder')
        tempfile.TemporaryFile(dir=folder).close()  # permissions do not tell all: read-only and special file systems


def write_checkpoint(path: str, content: dict[str, Any]) -> None:
    """``torch.save``.

    Raises:
        OSError: the system's reason.
    """
    try:
        # An open file: given a path, torch writes past Python and the reason is lost.
        with open(path, 'wb') as file:
            torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # to torch, a full disk is an "unexpected pos"
            raise error.__context__ from None
        raise


def write_text(path: str, text: str) -> None:
    """A file of UTF-8 text."""
    with open(path, 'w', encoding='utf-8') as file:
        file.write(text)


def write_whole(
    folder: str,
    writers: Mapping[str, Callable[[str], None]],
    force: bool = False,
    check: Callable[[str], Any] | None = None,
) -> Any:
    """Write files that belong together, all of them or none.

    They are written beside their place and renamed when the last one is
    whole; what is then left to go wrong is a rename, which takes no space.

    Args:
        folder: where they go; it is made.
        writers: by name of the file, what writes to the path it is given.
        force: replace existing files.
        check: looks at the written files, in the folder it is given and
            under their names, before they are put in place; raises if they
            should not be.

    Returns:
        What ``check`` returns.

    Raises:
        FileExistsError: a file exists and ``force`` is not set.
        IsADirectoryError: there is a folder in place of a file.
        OSError: cannot write there; nothing is left behind.
        others: as ``check``; nothing is left behind.
    """
    paths = {name: os.path.join(folder, name) for name in writers}
    for path in paths.values():
        refuse_existing(path, force)
    first, *others = paths.values()
    named = f'{first} and {len(others)} more' if len(others) > 4 else ' and '.join(paths.values())
    with _staging(folder, named) as staging:
        for name, write in writers.items():
            with _cannot_write(paths[name]):
                write(os.path.join(staging, name))
        result = check(staging) if check is not None else None
        for name, path in paths.items():
            with _cannot_write(path):
                os.replace(os.path.join(staging, name), path)
    return result


def replace_file(path: str, write: Callable[[str], None]) -> None:
    """Write one file, whole or not at all, in place of any that is there.

    Args:
        path: the file; its folder is made.
        write: writes to the path it is given.

    Raises:
        IsADirectoryError: ``path`` is a folder.
        OSError: cannot write there; nothing is left behind.
    """
    folder, name = os.path.split(path)
    write_whole(folder, {name: write}, force=True)


@contextmanager
def _staging(folder: str, names: str) -> Iterator[str]:
    """A hidden folder in ``folder`` that goes away, with what is in it."""
    with _cannot_write(names):
        with suppress(FileExistsError):
            os.makedirs(folder or '.')
        staging = tempfile.mkdtemp(prefix='.mmseg_segmenter.', suffix='.part', dir=folder or '.')
    try:
        yield staging
    finally:
        shutil.rmtree(staging)


@contextmanager
def _cannot_write(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(f'cannot write {path}: {error.strerror or error}') from None
