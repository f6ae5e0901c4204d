"""Lets mmengine's loader, and so ``init_cfg`` and ``load_from``, read foreign files."""

from collections import OrderedDict
from typing import Any

from mmengine.runner.checkpoint import CheckpointLoader

from .. import compat
from ..models.load_report import FILE_KEY
from .convert import read_encoder
from .download import PREFIX, fetch, locate


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """A local checkpoint; an ``.npz`` is converted in memory.

    Args:
        filename: ``.npz`` of a JAX ViT, or a file written by ``torch.save``.
        map_location: as ``torch.load``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, refused or not convertible; names the file.
    """
    if filename.endswith('.npz'):
        checkpoint = dict(state_dict=read_encoder(filename).conversion.state_dict)
    else:
        checkpoint = compat.load_from_local(filename, map_location)
    return _with_name(checkpoint, filename)


def _with_name(checkpoint: Any, filename: str) -> Any:
    """Note where the tensors are from, for the report of the model that they are loaded into.

    In the metadata, which is what mmengine keeps of a state_dict on the way.
    """
    if not isinstance(checkpoint, dict):
        return checkpoint
    if 'state_dict' in checkpoint:
        return {**checkpoint, 'state_dict': _with_name(checkpoint['state_dict'], filename)}
    metadata = OrderedDict(getattr(checkpoint, '_metadata', {}))
    metadata[''] = {**metadata.get('', {}), FILE_KEY: filename}
    named = OrderedDict(checkpoint)
    named._metadata = metadata  # type: ignore[attr-defined]
    return named


def load_from_augreg(filename: str, map_location: Any = None) -> Any:
    """A released AugReg file by name, ``augreg://NAME``, converted in memory.

    Args:
        filename: as :func:`mmseg_segmenter.checkpoints.download.locate`.
        map_location: not used; the tensors are on the CPU.

    Raises:
        FileNotFoundError: not on disk and not to be had; says which file to
            put where.
        ValueError: damaged or not convertible; names the file.
    """
    return load_from_local(locate(filename), map_location)


def load_from_http(filename: str, map_location: Any = None) -> Any:
    """A checkpoint by its URL, read like a local one.

    In place of mmengine's reader, which would run any code in the file.

    Args:
        filename: ``http://`` or ``https://``.
        map_location: as ``torch.load``.

    Raises:
        FileNotFoundError: not to be had; says which file to put where.
        ValueError: damaged, refused or not convertible; names the file.
    """
    return _with_name(load_from_local(fetch(filename), map_location), filename)


def register() -> None:
    """Make them mmengine's loaders."""
    CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)
    CheckpointLoader.register_scheme(prefixes=PREFIX, loader=load_from_augreg, force=True)
    CheckpointLoader.register_scheme(prefixes=['http://', 'https://'], loader=load_from_http, force=True)
