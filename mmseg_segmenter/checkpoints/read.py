"""Read foreign files without executing anything in them."""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..compat import load_from_local
from ..errors import MissingFileError, MissingPackageError, UserError


def read_tensors(path: str) -> dict[str, Tensor]:
    """Tensors of a checkpoint file, by its suffix ``.npz``, ``.safetensors`` or torch.

    A torch file may hold the tensors below ``state_dict`` (OpenMMLab) or
    ``model`` (DeiT, official Segmenter).

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, refused or without tensors; names the file.
    """
    if not os.path.isfile(path):
        raise MissingFileError(f'{path} not found (working directory: {os.getcwd()})')
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
        raise UserError(f'{path}: expected tensors by name, below "state_dict", "model" or directly; found {found}')
    return dict(content)


def read_npz(path: str) -> dict[str, Tensor]:
    """Arrays of an ``.npz`` file as tensors, without copies.

    Raises:
        ValueError: not an ``.npz`` file, cut short, or with pickled objects
            (which are refused: unpickling runs code).
    """
    size = f'{os.path.getsize(path):,} bytes'
    if not zipfile.is_zipfile(path):
        raise UserError(f'{path} ({size}) is not an .npz file; it may be incomplete or another kind of file')
    tensors = {}
    key = ''
    try:
        with np.load(path, allow_pickle=False) as file:
            for key in file.files:
                array = file[key]
                if array.dtype.kind not in 'fiub':
                    raise UserError(f'{path}: array {key!r} has dtype {array.dtype}, expected numbers')
                tensors[key] = torch.from_numpy(array)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise UserError(f'{path} ({size}) is damaged at {key!r} ({error})') from None
    except ValueError as error:
        if 'allow_pickle' in str(error):
            raise UserError(f'{path}: refused, array {key!r} is a pickled object') from None
        raise
    return tensors


def _read_safetensors(path: str) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise MissingPackageError(f'{path}: run pip install safetensors to read it') from None
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f'{path} ({os.path.getsize(path):,} bytes) is not a readable checkpoint ({error})') from None


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
