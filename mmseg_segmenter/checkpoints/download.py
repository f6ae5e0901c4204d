"""Download files once and keep them.

Files are compared with the size and the hash that the source tells: SHA-256 in the header ``X-Linked-ETag`` (Hugging
Face), MD5 in ``X-Goog-Hash`` (Google Cloud Storage, AugReg files), or the first digits of SHA-256 at the end of the
name (``-8f9cd2ab.pth``, OpenMMLab and torchvision).

Environment variables:
    MMSEG_SEGMENTER_CACHE: folder of the downloaded files, ``~/.cache/mmseg_segmenter`` if not set.
    MMSEG_SEGMENTER_DOWNLOAD_TIMEOUT: most seconds that one download may take, all attempts together, 7200 if not set.
"""

import base64
import binascii
import hashlib
import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from http.client import HTTPException, HTTPResponse
from typing import IO, Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from ..errors import FileAccessError, MissingFileError, UserError
from .integrity import DamagedError, check_file, file_digest

_ATTEMPTS = 4
# Seconds before the second attempt; the pause doubles with each.
_BACKOFF = 1.0
_CHUNK = 1 << 20
# Seconds without a byte after which a connection counts as broken.
_READ_TIMEOUT = 30


class DownloadError(Exception):
    """Describe why a file cannot be downloaded. The caller adds which file, and what to do.

    Args:
        reason: one line.
        status: of the answer, if the server's answer is the reason.
    """

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


def cache_folder() -> str:
    """Return the folder of downloaded files: ``$MMSEG_SEGMENTER_CACHE`` or ``~/.cache/mmseg_segmenter``."""
    return os.environ.get('MMSEG_SEGMENTER_CACHE') or os.path.expanduser('~/.cache/mmseg_segmenter')


def time_limit() -> float:
    """Return the most seconds that one download may take: ``$MMSEG_SEGMENTER_DOWNLOAD_TIMEOUT`` or two hours.

    Raises:
        UserError: the variable is not a positive number.
    """
    text = os.environ.get('MMSEG_SEGMENTER_DOWNLOAD_TIMEOUT') or '7200'
    with suppress(ValueError):
        if 0 < float(text) < float('inf'):
            return float(text)
    raise UserError(f'MMSEG_SEGMENTER_DOWNLOAD_TIMEOUT={text}; expected a positive number of seconds')


def fetch(url: str) -> str:
    """Return the path of the file behind a URL, and download it if it is not in the cache yet.

    It is kept in :func:`cache_folder` under its name and a hash of the whole URL. Several processes download once.

    Args:
        url: ``http://`` or ``https://``.

    Raises:
        UserError: the URL is malformed or does not name a file.
        MissingFileError: the file cannot be downloaded. The message says which file to put where.
        FileAccessError: the cache folder cannot be made.
    """
    target = os.path.join(cache_folder(), _cache_name(url))
    try:
        download(url, target)
    except DownloadError as error:
        raise MissingFileError(f'{url}: {error}. Download it by other means and save it as {target}') from None
    return target


def _cache_name(url: str) -> str:
    """Return the name of a URL's file in the cache, such as ``model-0123456789abcdef.pth``."""
    if not url.isascii() or not url.isprintable() or ' ' in url:
        raise UserError(f'{url!r}: expected a URL without spaces and special characters; write a space as %20')
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise UserError(f'{url}: not a URL ({error})') from None
    if not has_host:
        raise UserError(f'{url}: expected a URL with the name of a host')
    name = parts.path.rpartition('/')[2]
    if name in ('', '.', '..'):
        raise UserError(f'{url}: expected the URL of a file, found one of a folder')
    stem, suffix = re.fullmatch(r'(.*?)((?:\.safetensors\.index)?\.\w{1,16}|)', name).groups()  # type: ignore[union-attr]
    readable = re.sub(r'[^\w.-]', '_', stem)[:80]
    return f'{readable}-{hashlib.sha256(url.encode()).hexdigest()[:16]}{suffix}'


def download(url: str, target: str, token: str | None = None, is_checkpoint: bool = True) -> None:
    """Download a file unless it is in place, once for all processes.

    Args:
        url: of the file.
        target: where to put it; its folder is made.
        token: sent to this server, and not to those that it redirects to.
        is_checkpoint: check the file as :func:`~mmseg_segmenter.checkpoints.integrity.check_file` before it is put in
            place.

    Raises:
        DownloadError: the file cannot be downloaded.
        FileAccessError: its folder cannot be made.
    """
    if os.path.isfile(target):
        return
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
    except OSError as error:
        raise FileAccessError(f'cannot make the cache folder {os.path.dirname(target)}: {error.strerror}') from None
    limit = time_limit()
    try:
        with FileLock(target + '.lock', timeout=limit):
            if not os.path.isfile(target):  # another process may have been faster
                part = target + '.part'
                _receive_whole(url, part, limit, token)
                _check_hashes(url, part)
                if is_checkpoint:
                    _check(part)
                os.replace(part, target)
                _discard(part)
    except Timeout:
        raise DownloadError(f'another process has been downloading it for {limit:g} s') from None


def _receive_whole(url: str, part: str, limit: float, token: str | None) -> None:
    """Download a file to ``part``, and resume after a broken connection until it is whole."""
    deadline = time.monotonic() + limit
    problem = ''
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_BACKOFF * 2 ** (attempt - 1))
        try:
            return _fetch(url, part, deadline, token)
        except urllib.error.HTTPError as error:
            problem = f'the server answered {error.code} {error.reason}'
            if error.code == 416:  # what is here is not a beginning of the file
                _discard(part)
            elif error.code < 500:
                raise DownloadError(problem, error.code) from None
        except (OSError, HTTPException) as error:
            problem = f'download failed ({getattr(error, "reason", None) or error})'
        if time.monotonic() > deadline:
            raise DownloadError(
                f'download took longer than {limit:g} s (set MMSEG_SEGMENTER_DOWNLOAD_TIMEOUT to allow more)'
            )
    raise DownloadError(problem)


def _check(part: str) -> None:
    try:
        check_file(part)
    except DamagedError as error:
        size = os.path.getsize(part)
        _discard(part)
        raise DownloadError(f'the {size:,} bytes received are not a readable checkpoint ({error})') from None


def _check_hashes(url: str, part: str) -> None:
    """Compare a downloaded file with the hashes that its name and the server tell.

    Raises:
        DownloadError: it differs from one. It is discarded.
    """
    version = _stored_version(url, part, resumable=False)
    expected = [('the server', *item) for item in (version.hashes if version else {}).items()]
    # All digits would be a date: model-20240131.pth.
    named = re.search(r'-(?=[0-9]*[a-f])([0-9a-f]{8}|[0-9a-f]{64})\.\w+$', urlsplit(url).path)
    if named:
        expected.append(('its name', 'sha256', named[1]))
    for source, algorithm, digest in expected:
        found = file_digest(part, algorithm)
        if not found.startswith(digest):
            size = os.path.getsize(part)
            _discard(part)
            raise DownloadError(
                f'the {size:,} bytes received have the {algorithm} {found}, expected {digest} by {source}'
            )


def _hashes(headers: Mapping[str, Any]) -> dict[str, str]:
    """Return the hashes of a whole file that an answer, or a redirection to it, tells: hex digests by algorithm."""
    hashes = {}
    linked = re.fullmatch(r'"?([0-9a-f]{64})"?', headers.get('X-Linked-ETag', ''))
    if linked:
        hashes['sha256'] = linked[1]
    google = re.search(r'\bmd5=([A-Za-z0-9+/]{22}==)', ','.join(headers.get_all('X-Goog-Hash') or ()))  # type: ignore[attr-defined]
    if google:
        hashes['md5'] = binascii.hexlify(base64.b64decode(google[1])).decode()
    return hashes


class _Redirections(urllib.request.HTTPRedirectHandler):
    """Keep the hashes of redirections. Hugging Face tells them there, not where the file is."""

    def __init__(self) -> None:
        self.hashes: dict[str, str] = {}

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """Follow a redirection."""
        self.hashes |= _hashes(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@dataclass(frozen=True)
class _Version:
    """Which version of a remote file a ``.part`` file is the beginning of; stored beside it.

    Attributes:
        url: of the file.
        validator: strong ``ETag``, or ``Last-Modified``: the value for ``If-Range``.
        total: length of the file in bytes, if the server told.
        hashes: of the file, hex digests by algorithm, if the server told.
    """

    url: str
    validator: str
    total: int | None
    hashes: dict[str, str] = field(default_factory=dict)


def _note(part: str) -> str:
    return part + '.json'


def _discard(part: str) -> None:
    for path in (part, _note(part)):
        with suppress(FileNotFoundError):
            os.unlink(path)


def _stored_version(url: str, part: str, resumable: bool = True) -> _Version | None:
    """Return the version that the ``.part`` file is of, or None if it is not known or, by default, not resumable."""
    try:
        with open(_note(part), encoding='utf-8') as file:
            version = _Version(**json.load(file))
    except (OSError, ValueError, TypeError):
        return None
    known = version.url == url and os.path.isfile(part)
    return version if known and (version.validator or not resumable) else None


def _fetch(url: str, part: str, deadline: float, token: str | None) -> None:
    """Download a file to ``part``, or only what is missing of it if it is still the same file.

    Raises:
        OSError: the connection broke, fewer bytes came than announced, or other bytes than those asked for.
        DownloadError: the server's answer makes no sense.
    """
    version = _stored_version(url, part)
    done = os.path.getsize(part) if version is not None else 0
    headers = {'Range': f'bytes={done}-', 'If-Range': version.validator} if version is not None and done else {}
    request = urllib.request.Request(url, headers=headers)
    if token is not None:
        request.add_unredirected_header('Authorization', f'Bearer {token}')
    redirections = _Redirections()
    with urllib.request.build_opener(redirections).open(request, timeout=_READ_TIMEOUT) as response:
        if response.status == 206 and version is not None:
            total = _resumed_total(response.headers, done, version, part)
        elif response.status == 200:  # the whole file: the server cannot resume, or has another version by now
            done, total = 0, _content_length(response.headers)
            _discard(part)
            hashes = redirections.hashes | _hashes(response.headers)
            with open(_note(part), 'w', encoding='utf-8') as file:
                json.dump(asdict(_Version(url, _validator(response.headers), total, hashes)), file)
        else:
            raise DownloadError(f'the server answered {response.status} {response.reason}')
        _receive(response, part, done, total, deadline)


def _receive(response: HTTPResponse, part: str, done: int, total: int | None, deadline: float) -> None:
    """Append the body of an answer to ``part``, which has ``done`` bytes of ``total``."""
    name = os.path.basename(part).removesuffix('.part')
    with open(part, 'ab') as file:
        while chunk := response.read1(_CHUNK):  # read() would wait for a whole chunk, however slowly it comes
            file.write(chunk)
            done += len(chunk)
            _show_progress(name, done, total)
            if time.monotonic() > deadline:
                raise TimeoutError('time limit')
    if total is not None and done != total:
        raise OSError(f'{done:,} of {total:,} bytes came')


def _content_length(headers: Mapping[str, Any]) -> int | None:
    text = headers.get('Content-Length')
    if text is None:
        return None
    if not re.fullmatch(r'[0-9]{1,18}', text.strip()):
        raise DownloadError(f'the server announced Content-Length: {text!r}, expected a number of bytes')
    return int(text)


def _validator(headers: Mapping[str, Any]) -> str:
    """Return what identifies a version of a file: its strong ETag, else its date, else ''."""
    etag = headers.get('ETag', '')
    return etag if etag.startswith('"') else headers.get('Last-Modified', '')


def _resumed_total(headers: Mapping[str, Any], done: int, version: _Version, part: str) -> int | None:
    """Return the length of the whole file that a partial answer continues after ``done`` bytes.

    Raises:
        OSError: the answer continues elsewhere, or another file. What was received is discarded.
    """
    text = headers.get('Content-Range', '')
    match = re.fullmatch(r'bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)', text.strip())
    total = int(match[2]) if match and match[2] != '*' else version.total
    continues = match is not None and int(match[1]) == done and version.total in (None, total)
    if not continues or _validator(headers) not in ('', version.validator):
        _discard(part)
        raise OSError(f'asked for the bytes from {done:,} on, the server sent others (Content-Range: {text!r})')
    return total


def _show_progress(name: str, done: int, total: int | None) -> None:
    if not sys.stderr.isatty():
        return
    share = f'{done / total:4.0%} of {total / 1e6:.0f} MB' if total else f'{done / 1e6:.0f} MB'
    end = '\n' if done == total else ''
    print(f'\rdownloading {name}: {share}', end=end, file=sys.stderr, flush=True)
