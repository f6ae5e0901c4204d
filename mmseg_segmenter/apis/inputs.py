"""From what a user names on a command line to a list of tasks with unique names."""

import glob
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from ..datasets.image_files import no_pillow_limit, open_image
from ..errors import MissingFileError, UserError
from ..names import path_parts, unique_names
from .storage import file_system, is_uri, read_bytes

IMAGE_SUFFIXES = frozenset(
    f'.{suffix}'
    for suffix in (
        *('avif', 'bmp', 'dib', 'gif', 'j2k', 'jfif', 'jp2', 'jpe', 'jpeg', 'jpg'),
        *('pbm', 'pgm', 'png', 'pnm', 'ppm', 'tga', 'tif', 'tiff', 'webp'),
    )
)
# The kind of input by suffix. Other files are images.
VIDEO_SUFFIXES = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv')
KINDS: dict[str, str] = {'.vrt': 'raster', **dict.fromkeys(VIDEO_SUFFIXES, 'video')}
CAMERA = 'camera:'  # begins a source such as camera:0 or camera:rtsp://host/stream
# Images with more pixels are segmented as rasters, strip by strip.
RASTER_PIXELS = 150_000_000
_LISTS = ('.txt', '.lst')
_ANIMATIONS = ('GIF', 'PNG', 'WEBP')  # other formats hold pages, or views for 3D
_GEO_KEYS = 34735  # the TIFF tag that names a coordinate system


class Task(NamedTuple):
    """One input to segment.

    Attributes:
        source: path or URI.
        name: of the results, without suffix, with ``/`` between sub-folders;
            unique among the tasks of a run.
        kind: ``'image'``, a key of :data:`mmseg_segmenter.apis.pipeline.HANDLERS`,
            or ``'auto'``: ``'raster'`` if the image has a coordinate system
            (GeoTIFF) or more than ``RASTER_PIXELS`` pixels, ``'animation'`` if
            it has several frames, else ``'image'``.
    """

    source: str
    name: str
    kind: str = 'auto'


class _Source(NamedTuple):
    """A path or URI, and the parts of it that become the name of its results."""

    path: str
    parts: tuple[str, ...]


def find_tasks(
    inputs: Iterable[str],
    exclude: str | None = None,
    known: Mapping[str, str] | None = None,
    raster: bool | None = None,
) -> list[Task]:
    """Find the files that inputs stand for, and give each a name.

    Results of a folder or pattern keep the sub-folders below it. Results of
    files keep the folders below the one that contains them all. If two names
    are the same up to case, their suffixes are added, and if that is not
    enough, a hash of their paths. The order of the inputs does not change the
    names.

    Args:
        inputs: files, folders (searched recursively for images and other known
            suffixes), glob patterns, text files with one input per line
            (``.txt``), URIs of any of these, or cameras (``camera:0``).
        exclude: folder that is not searched, such as that of the results.
        known: names that sources have from an earlier run. They keep them, and
            others do not get them.
        raster: segment all images as rasters, none, or (None) those where it
            is better.

    Raises:
        MissingFileError: an input does not exist, or a pattern matches nothing.
        UserError: a folder without images.
    """
    found: dict[str, _Source] = {}
    files: list[str] = []
    for path in _read_lists(inputs):
        searched = _search(path, exclude)
        if searched is None:
            files.append(path)
        else:
            for source in searched:
                found.setdefault(identity(source.path), source)
    for source in _below_common_folder(files):
        found.setdefault(identity(source.path), source)
    kept = {identity(source): name for source, name in (known or {}).items()}
    names = unique_names({key: source.parts for key, source in found.items()}, kept)
    return [
        Task(source.path, name, _kind(source.path, raster)) for source, name in zip(found.values(), names, strict=True)
    ]


def _read_lists(inputs: Iterable[str], depth: int = 0) -> Iterator[str]:
    """Replace text files by their lines."""
    for one in inputs:
        if not one.lower().endswith(_LISTS) or not (is_uri(one) or os.path.isfile(one)):
            yield one
            continue
        try:
            lines = read_bytes(one).decode('utf-8-sig').splitlines()
        except UnicodeDecodeError:
            raise UserError(f'{one} is not a text file in UTF-8; expected one input per line') from None
        lines = [line.strip() for line in lines if line.strip()]
        if not lines:
            raise UserError(f'{one} has no lines; expected one input per line')
        if depth:
            raise UserError(f'{one} is in a list of inputs; lists of lists are not read')
        yield from _read_lists(lines, depth + 1)


def _search(path: str, exclude: str | None) -> list[_Source] | None:
    """Return the files below a folder or that match a pattern; None for a single file."""
    if path.startswith(CAMERA):
        return [_Source(path, (re.sub(r'[^\w.-]+', '-', path).strip('-') + '.camera',))]
    if is_uri(path):
        return _search_uri(path)
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        found = [_Source(file, path_parts(os.path.relpath(file, path))) for file in _walk(path, exclude)]
        if not found:
            raise UserError(f'{path} has no images (searched in sub-folders too)')
        return found
    if os.path.exists(path):
        return None
    if not glob.has_magic(path):
        raise MissingFileError(f'{path} not found (working directory: {os.getcwd()})')
    base = os.path.dirname(path[: min(path.index(c) for c in '*?[' if c in path)])
    found = []
    for match in sorted(glob.glob(path, recursive=True)):
        files = _walk(match, exclude) if os.path.isdir(match) else [match]
        if exclude and os.path.realpath(match).startswith(os.path.join(os.path.realpath(exclude), '')):
            continue
        found += [_Source(file, path_parts(os.path.relpath(file, base or '.'))) for file in files]
    if not found:
        raise MissingFileError(f'no file matches {path} (working directory: {os.getcwd()})')
    return list(dict.fromkeys(found))


def _walk(folder: str, exclude: str | None) -> Iterator[str]:
    """Yield the files of known suffixes below a folder, in the order of their names; links are followed."""
    excluded, seen = exclude and os.path.realpath(exclude), set()
    for path, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in seen or real == excluded:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        yield from (os.path.join(path, name) for name in sorted(files) if not name.startswith('.') and _known(name))


def _known(name: str) -> bool:
    suffix = os.path.splitext(name)[1].lower()
    return suffix in IMAGE_SUFFIXES or suffix in KINDS


def _search_uri(uri: str) -> list[_Source] | None:
    if uri.startswith(('http://', 'https://')):
        return None
    fs, path = file_system(uri)
    magic = glob.has_magic(path)
    if not magic and not fs.isdir(path):
        return None
    found = sorted(fs.glob(path) if magic else filter(_known, fs.find(path)))
    found = [one for one in found if not fs.isdir(one)]
    if not found:
        raise UserError(f'{uri} has no images')
    base = path[: min(path.index(c) for c in '*?[' if c in path)].rpartition('/')[0] if magic else path.rstrip('/')
    return [_Source(fs.unstrip_protocol(one), path_parts(one[len(base) :])) for one in found]


def _below_common_folder(files: Sequence[str]) -> Iterator[_Source]:
    """Name files by their paths below the folder that contains them all, in each file system."""
    parts = {path: _absolute_parts(path) for path in files}
    folders: dict[str, set[tuple[str, ...]]] = {}
    for root, *rest in parts.values():
        folders.setdefault(root, set()).add(tuple(rest[:-1]))
    common = {root: _common_length(found) for root, found in folders.items()}
    for path, (root, *rest) in parts.items():
        yield _Source(path, tuple(rest[common[root] :]))


def _common_length(sequences: Iterable[tuple[str, ...]]) -> int:
    """Return with how many equal elements all sequences begin."""
    together = itertools.takewhile(lambda elements: len(set(elements)) == 1, zip(*sequences, strict=False))
    return sum(1 for _ in together)


def _absolute_parts(path: str) -> tuple[str, ...]:
    """Return the root (drive, or scheme and host) and all folders of a path, and its name."""
    if is_uri(path):
        split = urlsplit(path)
        return (f'{split.scheme}://{split.netloc}', *path_parts(unquote(split.path)))
    drive, rest = os.path.splitdrive(os.path.abspath(os.path.expanduser(path)))
    return (drive, *path_parts(rest))


def identity(path: str) -> str:
    """Return what is the same for two names of one file: its absolute path, or its URI. Cameras keep their name."""
    return path if is_uri(path) or path.startswith(CAMERA) else os.path.abspath(os.path.expanduser(path))


def _kind(path: str, raster: bool | None) -> str:
    if path.startswith(CAMERA):
        return 'camera'
    suffix = suffix_of(path).lower()
    if suffix in KINDS:
        return KINDS[suffix]
    return 'auto' if raster is None else 'raster' if raster else 'image'


def suffix_of(path: str) -> str:
    """Return the suffix of a path or URI with its dot, '' for a camera."""
    if path.startswith(CAMERA):
        return ''
    return os.path.splitext(urlsplit(path).path if is_uri(path) else path)[1]


class Header(NamedTuple):
    """What the first bytes of an image file tell.

    Attributes:
        pixels: height times width.
        georeferenced: a TIFF with a coordinate system.
        animated: it has several frames, which are shown one after another.
    """

    pixels: int
    georeferenced: bool = False
    animated: bool = False


def read_header(path: str) -> Header | None:
    """Return the header of a local image file, None if it is no such file."""
    if is_uri(path):
        return None
    try:
        path = os.path.expanduser(path)
        if not os.path.isfile(path):  # opening a pipe would wait
            return None
        with no_pillow_limit(), open(path, 'rb') as file, open_image(file) as image:
            tags: Any = getattr(image, 'tag_v2', {})
            animated = image.format in _ANIMATIONS and getattr(image, 'is_animated', False)
            return Header(image.width * image.height, _GEO_KEYS in tags, animated)
    except Exception:  # Pillow raises many kinds; the error is reported when the file is read
        return None
