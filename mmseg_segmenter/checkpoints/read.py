"""Read a checkpoint: a path, a URL or the name of a released file in, its content and origin out.

Everything in the package that reads weights reads them here: the converters, and through
:mod:`mmseg_segmenter.checkpoints.schemes` mmengine's ``load_from``, ``resume``, ``init_model`` and ``init_cfg``.
Nothing in a file is executed.
"""

import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..errors import FileAccessError, MissingFileError, MissingPackageError, NotAFileError, UserError, describe
from .download import fetch
from .integrity import DamagedError, Format, check_file, file_digest, read_index
from .released import find

_SUFFIXES = {
    '.npz': Format.NPZ,
    '.safetensors': Format.SAFETENSORS,
    '.json': Format.INDEX,
    '.pth': Format.TORCH,
    '.pt': Format.TORCH,
}
_URLS = ('http://', 'https://')


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        source: the path, URL or name that was asked for.
        format: kind of the file.
        content: what was given to ``torch.save``. For other formats, the tensors by name.
    """

    source: str
    format: Format
    content: Any

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name: the content, or what is below ``state_dict``, ``model`` (DeiT) or ``teacher`` (DINO).

        Raises:
            UserError: the content is something else.
        """
        content = unwrap(self.content)
        if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()) or not content:
            found = ', '.join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
            raise UserError(
                f'{self.source}: expected tensors by name, below "state_dict", "model", "teacher" or directly; found '
                f'{found or "nothing"}'
            )
        return dict(content)


def unwrap(content: Any) -> Any:
    """Return what is below ``state_dict`` (OpenMMLab), ``model`` (DeiT) or ``teacher`` (DINO), else the content."""
    for key in ('state_dict', 'model', 'teacher'):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    return content


def read(source: str, map_location: Any = None) -> Checkpoint:
    """Read a checkpoint file of any known format.

    The content decides which format it is; the file is checked before it is read, see
    :func:`mmseg_segmenter.checkpoints.integrity.check_file`.

    Args:
        source: path, ``http(s)://`` URL, or name of a released file (:mod:`.released`). A file of ``torch.save``,
            ``.npz`` or ``.safetensors``, or an index (``*.safetensors.index.json``) whose shards are beside it.
        map_location: as in ``torch.load``. Other formats are read to the CPU.

    Raises:
        MissingFileError: there is no such file, or it cannot be downloaded.
        MissingPackageError: a ``.safetensors`` file, without the package that reads it.
        UserError: the file is damaged, of another kind than its suffix says, or holds more than tensors and plain
            values. The message names it.
    """
    source = os.fspath(source)
    path = local_path(source)
    format = _check(path)
    suffix = os.path.splitext(path)[1]
    if '://' not in source and _SUFFIXES.get(suffix, format) is not format:
        raise UserError(f'{path} is {format.value}, not {_SUFFIXES[suffix].value}: rename it')
    if format is Format.INDEX:
        return Checkpoint(source, format, _read_shards(source, path))
    return Checkpoint(source, format, _read_file(path, format, map_location))


def read_tensors(source: str) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, on the CPU.

    Args:
        source: as in :func:`read`.

    Raises:
        UserError: as in :func:`read`, or the file holds no tensors by name.
    """
    return read(source, map_location='cpu').tensors


def local_path(source: str) -> str:
    """Return the path of a checkpoint, and download it if ``source`` is a URL or the name of a released file.

    Raises:
        UserError: there is no such file, or it cannot be downloaded. The message names it.
    """
    if source.startswith(_URLS):
        return fetch(source)
    if released := find(source):
        return released
    path = os.path.expanduser(source)
    if os.path.isdir(path):
        raise NotAFileError(f'checkpoint {path} is a folder, expected a file')
    if not os.path.isfile(path):
        raise MissingFileError(f'checkpoint {path} not found (working directory: {os.getcwd()})')
    return path


def _check(path: str) -> Format:
    try:
        return check_file(path)
    except DamagedError as error:
        raise _unreadable(path, str(error)) from None
    except OSError as error:
        raise FileAccessError(f'cannot read checkpoint {path}: {error.strerror or error}') from None


def _unreadable(path: str, reason: str) -> UserError:
    return UserError(
        f'{path} ({os.path.getsize(path):,} bytes) is not a readable checkpoint ({reason}); it may be incomplete, '
        'damaged or another kind of file'
    )


def _read_file(path: str, format: Format, map_location: Any) -> Any:
    """Read a checked file, and turn whatever its parser raises into one line."""
    try:
        if format is Format.TORCH:
            return torch.load(path, map_location=map_location, weights_only=True)
        return _read_npz(path) if format is Format.NPZ else _read_safetensors(path)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        refused = re.search(
            r'(?:unsupported (?:global|class)|can only build)[^\n]*?(?=( was not an allowed|\. Please use|\n|$))',
            str(error),
            re.I,
        )
        if refused is None:
            reason = str(error).rpartition('WeightsUnpickler error:')[2].strip()
            raise _unreadable(path, reason.partition('\n')[0]) from error
        raise UserError(
            f'{path}: refused, it holds more than tensors and plain values ({refused[0]}). If you trust the file, '
            'save it again with tensors only, or allow the class with torch.serialization.add_safe_globals'
        ) from None
    except Exception as error:  # the parsers raise almost anything on damaged files
        if isinstance(error, RuntimeError) and 'CUDA' in str(error):
            raise  # no GPU, or too little of its memory: not the file's fault
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise UserError(f'{path} ({os.path.getsize(path):,} bytes): not enough memory to read it') from None
        raise _unreadable(path, describe(error)) from error


def _read_npz(path: str) -> dict[str, Tensor]:
    tensors = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            try:
                array = file[key]
            except ValueError as error:
                if 'allow_pickle' not in str(error):
                    raise
                raise UserError(f'{path}: refused, array {key!r} is a pickled object') from None
            if array.dtype.kind not in 'fiub':
                raise UserError(f'{path}: array {key!r} has dtype {array.dtype}, expected numbers')
            tensors[key] = torch.from_numpy(array.astype(array.dtype.newbyteorder('='), copy=False))
    return tensors


def _read_safetensors(path: str) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise MissingPackageError(f'{path}: run pip install safetensors to read it') from None
    return load_file(path)


def _read_shards(source: str, index: str) -> dict[str, Tensor]:
    """Read the tensors of a sharded checkpoint.

    Args:
        source: path or URL of the index. The shards are beside it.
        index: path of the index.
    """
    weight_map = read_index(index)
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(weight_map.values())):
        is_url = source.startswith(_URLS)
        shard = read_tensors(urljoin(source, name) if is_url else os.path.join(os.path.dirname(index), name))
        missing = [key for key, file_name in weight_map.items() if file_name == name and key not in shard]
        if missing:
            raise UserError(f'{index}: shard {name} has no tensor {missing[0]!r}')
        tensors.update((key, tensor) for key, tensor in shard.items() if weight_map.get(key) == name)
    return tensors


def provenance(source: str, architecture: object) -> dict[str, str]:
    """Return the ``meta`` of a converted checkpoint: which file it was made from, and by what."""
    return dict(
        source=os.path.basename(source),
        sha256=file_digest(local_path(source)),
        architecture=str(architecture),
        converter=f'mmseg_segmenter {__version__}',
    )
