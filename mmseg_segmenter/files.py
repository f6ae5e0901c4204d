"""Write files whole or not at all; find out before the work whether they can be read and written."""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch

from .errors import BadSampleError, ExistingFileError, FileAccessError, NotAFileError, UserError

# Ends the names of files that are being written. They begin with a dot.
PART = '.part'


def check_regular(path: str) -> os.stat_result:
    """Refuse what is not a file, such as a pipe, which would never end; return size and times of a file.

    Raises:
        BadSampleError: it is a folder, a pipe, a device or a socket.
        OSError: it does not exist, or may not be looked at.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise BadSampleError(f'{path} is a {"folder" if stat.S_ISDIR(found.st_mode) else "pipe or device"}, not a file')
    return found


def refuse_existing(path: str, force: bool) -> None:
    """Raise an error if a destination is not free.

    Args:
        path: file to be written.
        force: existing files may be replaced.

    Raises:
        ExistingFileError: ``path`` exists and ``force`` is not set.
        NotAFileError: ``path`` is a folder.
    """
    if os.path.isdir(path):
        raise NotAFileError(f'{path} is a folder, expected the name of a file')
    if os.path.exists(path) and not force:
        raise ExistingFileError(f'{path} exists; use --force to replace it')


def check_destination(path: str, suffix: str = '') -> None:
    """Find out before hours of work whether their result can be written. Nothing is made.

    Args:
        path: file to be written; its folder need not exist.
        suffix: end that the name must have.

    Raises:
        UserError: ``path`` is a folder, or has another suffix.
        FileAccessError: no folder can be made or written to there.
    """
    if not path.endswith(suffix) or os.path.isdir(path) or not os.path.basename(path):
        ends = f' that ends in {suffix}' if suffix else ''
        raise UserError(f'out={path}; expected the name of a file{ends}')
    check_folder(os.path.dirname(path), path)


def check_folder(path: str, name: str | None = None) -> None:
    """Find out whether files can be written in a folder. Nothing is made.

    Args:
        path: folder; it need not exist.
        name: what the error message calls the destination; default: ``path``.

    Raises:
        FileAccessError: no folder can be made or written to there.
    """
    folder = os.path.abspath(path)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    with _cannot_write(name or path):
        if not os.path.isdir(folder):
            raise NotADirectoryError(errno.ENOTDIR, f'{folder} is not a folder')
        tempfile.TemporaryFile(dir=folder).close()  # permissions do not tell all: read-only and special file systems


def write_checkpoint(path: str, content: dict[str, Any]) -> None:
    """Write a checkpoint with ``torch.save``.

    Raises:
        OSError: it cannot be written; has the system's reason, such as a full disk.
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
    """Write a text file in UTF-8."""
    with open(path, 'w', encoding='utf-8') as file:
        file.write(text)


def write_atomically(
    folder: str,
    writers: Mapping[str, Callable[[str], None]],
    force: bool = False,
    check: Callable[[str], Any] | None = None,
) -> Any:
    """Write files that belong together, all of them or none.

    They are written to a temporary folder beside their destination, and
    renamed when the last one is whole. A rename takes no space on the disk.

    Args:
        folder: for the files; it is made.
        writers: functions by the name of the file; each writes to the path it
            is given.
        force: replace existing files.
        check: called with the temporary folder before the files are renamed;
            raises if they should not be.

    Returns:
        What ``check`` returns.

    Raises:
        ExistingFileError: a file exists and ``force`` is not set.
        NotAFileError: there is a folder in place of a file.
        FileAccessError: cannot write there; nothing is left behind.
        Exception: what ``check`` raises; nothing is left behind.
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
        NotAFileError: ``path`` is a folder.
        FileAccessError: cannot write there; nothing is left behind.
    """
    folder, name = os.path.split(path)
    write_atomically(folder, {name: write}, force=True)


def replace_durably(path: str, content: bytes) -> None:
    """Write one file so that after a crash of the program or the machine there is the old one or the new one, whole.

    Args:
        path: the file; its folder is made.
        content: of the new file.

    Raises:
        FileAccessError: cannot write there; nothing is left behind, and an existing file stays.
    """
    folder, name = os.path.split(os.path.abspath(path))
    part = os.path.join(folder, f'.{name}{PART}')
    with _cannot_write(path):
        os.makedirs(folder, exist_ok=True)
        try:
            with open(part, 'wb') as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(part)
            raise
        if os.name == 'posix':  # elsewhere folders cannot be opened
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@contextmanager
def _staging(folder: str, names: str) -> Iterator[str]:
    """Make a hidden folder in ``folder``, and remove it with its contents in the end."""
    with _cannot_write(names):
        with suppress(FileExistsError):
            os.makedirs(folder or '.')
        staging = tempfile.mkdtemp(prefix='.mmseg_segmenter.', suffix=PART, dir=folder or '.')
    try:
        yield staging
    finally:
        shutil.rmtree(staging)


@contextmanager
def _cannot_write(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FileAccessError(f'cannot write {path}: {error.strerror or error}') from None
