"""Lets mmengine's loader, and so ``init_cfg`` and ``load_from``, read foreign files."""

from typing import Any

from mmengine.runner.checkpoint import CheckpointLoader

from .. import compat
from .encoder import read_encoder


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """A local checkpoint; an ``.npz`` is converted in memory.

    Args:
        filename: ``.npz`` of a JAX ViT, or a file written by ``torch.save``.
        map_location: as ``torch.load``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, refused or not convertible; names the file.
    """
    if not filename.endswith('.npz'):
        return compat.load_from_local(filename, map_location)
    return dict(state_dict=read_encoder(filename).conversion.state_dict)


def register() -> None:
    """Make it mmengine's loader of local files."""
    CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)
