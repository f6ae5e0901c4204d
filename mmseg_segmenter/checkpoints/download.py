"""Checkpoints of the web, downloaded once and kept: released AugReg files by name, any others by URL."""

import os
import sys
import time
import urllib.error
import urllib.request
import zipfile
from http.client import HTTPException
from urllib.parse import urlparse

import torch
from filelock import FileLock

from ..errors import FileAccessError, MissingFileError

PREFIX = 'augreg://'
_ATTEMPTS = 4
_CHUNK = 1 << 20


def base_url() -> str:
    """Where the files are: ``$MMSEG_SEGMENTER_AUGREG_URL``, by default Google's bucket."""
    url = os.environ.get('MMSEG_SEGMENTER_AUGREG_URL') or 'https://storage.googleapis.com/vit_models/augreg'
    return url.rstrip('/') + '/'


def cache_folder() -> str:
    """Where they are kept: ``$MMSEG_SEGMENTER_CACHE``, by default ``~/.cache/mmseg_segmenter``."""
    return os.environ.get('MMSEG_SEGMENTER_CACHE') or os.path.expanduser('~/.cache/mmseg_segmenter')


def locate(name: str) -> str:
    """Path of a released file, downloading it if it is nowhere.

    Looks in ``pretrain/`` of the working directory, then in
    :func:`cache_folder`. Of several processes that want the same file, ranks
    of a training among them, one downloads and the others wait.

    Args:
        name: such as ``augreg://B_16-i21k-...-res_384``; the prefix and
            ``.npz`` may be left out.

    Raises:
        FileNotFoundError: not on disk and not to be had; says which file to
            put where.
        OSError: the cache folder cannot be made.
    """
    file_name = name.removeprefix(PREFIX).removesuffix('.npz') + '.npz'
    if os.path.basename(file_name) != file_name:
        raise MissingFileError(f'{name}: expected the name of a file, without folders')
    places = [os.path.join('pretrain', file_name), os.path.join(cache_folder(), file_name)]
    for path in places:
        if os.path.isfile(path):
            return path
    target = places[-1]
    problem = ensure_downloaded(base_url() + file_name, target)
    if problem:
        raise MissingFileError(
            f'{name}: {problem}. Get {base_url()}{file_name} on another way and put it at '
            f'{os.path.join(os.getcwd(), places[0])} or {target}'
        )
    return target


def fetch(url: str) -> str:
    """Path of a checkpoint given by its URL, downloading it if it is not here yet.

    It is kept, by its name, in ``checkpoints`` of torch's hub folder
    (``$TORCH_HOME/hub``, by default ``~/.cache/torch/hub``), as mmengine does.
    Several processes download once.

    Args:
        url: ``http://`` or ``https://``.

    Raises:
        FileNotFoundError: not to be had; says which file to put where.
        OSError: the folder cannot be made.
    """
    target = os.path.join(torch.hub.get_dir(), 'checkpoints', os.path.basename(urlparse(url).path))
    problem = ensure_downloaded(url, target)
    if problem:
        raise MissingFileError(f'{url}: {problem}. Get it on another way and put it at {target}')
    return target


def ensure_downloaded(url: str, target: str) -> str:
    """Download a file unless it is here; what is wrong, or ''."""
    if os.path.isfile(target):
        return ''
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
    except OSError as error:
        raise FileAccessError(f'cannot make the cache folder {os.path.dirname(target)}: {error.strerror}') from None
    with FileLock(target + '.lock'):
        # another process may have been faster
        return '' if os.path.isfile(target) else _download(url, target)


def _download(url: str, target: str) -> str:
    """Fetch a file, going on after a broken connection; what is wrong, or ''."""
    part = target + '.part'
    problem = ''
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(2 ** (attempt - 1))
        try:
            _fetch(url, part)
        except urllib.error.HTTPError as error:
            problem = f'the server answered {error.code} {error.reason}'
            if error.code == 416:  # what is here is not a beginning of the file
                os.unlink(part)
            elif error.code < 500:
                return problem
        except (OSError, HTTPException) as error:
            problem = f'download failed ({getattr(error, "reason", None) or error})'
        else:
            if _is_checkpoint(part, target):
                os.replace(part, target)
                return ''
            size = os.path.getsize(part)
            os.unlink(part)
            return (
                f'the {size:,} bytes that came are not {"an .npz file" if target.endswith(".npz") else "a checkpoint"}'
            )
    return problem


def _is_checkpoint(path: str, name: str) -> bool:
    """Is this an ``.npz`` or of ``torch.save``, rather than the page of a proxy or a login?"""
    if zipfile.is_zipfile(path):
        return True
    with open(path, 'rb') as file:
        return not name.endswith('.npz') and file.read(1) == b'\x80'  # torch before 1.6 wrote bare pickles


def _fetch(url: str, part: str) -> None:
    """Append to ``part`` what is missing of it.

    Raises:
        OSError: the connection broke, or fewer bytes came than announced.
    """
    done = os.path.getsize(part) if os.path.isfile(part) else 0
    request = urllib.request.Request(url, headers={'Range': f'bytes={done}-'} if done else {})
    with urllib.request.urlopen(request, timeout=30) as response:
        if response.status != 206:  # the server starts from the beginning
            done = 0
        announced = response.headers.get('Content-Length')
        total = done + int(announced) if announced else None
        with open(part, 'ab' if done else 'wb') as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                _show_progress(os.path.basename(url), done, total)
    if total is not None and done != total:
        raise OSError(f'{done:,} of {total:,} bytes came')


def _show_progress(name: str, done: int, total: int | None) -> None:
    if not sys.stderr.isatty():
        return
    share = f'{done / total:4.0%} of {total / 1e6:.0f} MB' if total else f'{done / 1e6:.0f} MB'
    end = '\n' if done == total else ''
    print(f'\rdownloading {name}: {share}', end=end, file=sys.stderr, flush=True)
