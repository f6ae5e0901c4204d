"""Make mmengine read checkpoints with this package: ``load_from``, ``resume``, ``init_model`` and ``init_cfg``."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from mmengine.runner import checkpoint as mmengine_loaders
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor

from ..models.backbones.vit import foreign_layouts
from ..models.load_report import FILE_KEY
from .convert import to_encoder
from .formats import is_encoder
from .integrity import Format
from .read import read, unwrap
from .released import SCHEMES


def load_from_mmseg_segmenter(filename: str, map_location: Any = None) -> Any:
    """Load a checkpoint for mmengine, which names its loaders in the log by what follows ``load_from_``.

    In place of mmengine's loaders, which know fewer formats and run any code in a file that they download. Files of
    ``torch.save`` are passed on as they are, because models of other packages read them too. Of other formats, the
    encoder of a JAX or timm ViT is converted to mmseg's layout in memory.

    Args:
        filename: as in :func:`mmseg_segmenter.checkpoints.read.read`.
        map_location: as in ``torch.load``.

    Raises:
        UserError: the file is missing, damaged, refused or not convertible. The message names it.
    """
    checkpoint = read(filename, map_location)
    if checkpoint.format is Format.TORCH:
        return _with_name(checkpoint.content, filename)
    tensors = checkpoint.tensors
    if is_encoder(tensors):
        tensors = to_encoder(filename, tensors).conversion.state_dict
    return _with_name(dict(state_dict=tensors, meta={}), filename)  # mmseg's init_model asks for "meta"


def _with_name(checkpoint: Any, filename: str) -> Any:
    """Note where the tensors are from, for the report of the model that loads them.

    The note is in the metadata of the state_dict, which is all that mmengine keeps on the way.
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


def _convert_foreign(path: str, source: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Convert what ``init_cfg`` of a :class:`SegmenterViT` names, if it is the encoder of another project.

    Files of ``torch.save`` come here as they are, because models of other packages read them too.

    Raises:
        UserError: the file cannot be converted; the message names it.
    """
    tensors = {key: value for key, value in unwrap(source).items() if isinstance(value, Tensor)}
    return to_encoder(path, tensors).conversion.state_dict if is_encoder(tensors) else None


def register() -> None:
    """Register this loader for paths, URLs and names of released models, and the converter for pretrained ViTs."""
    if _convert_foreign not in foreign_layouts:
        foreign_layouts.append(_convert_foreign)
    CheckpointLoader.register_scheme(
        prefixes=['', 'http://', 'https://', *SCHEMES], loader=load_from_mmseg_segmenter, force=True
    )
    # mmengine's loaders of open-mmlab://, mmcls:// and torchvision:// look up a URL and call this function. mmengine's
    # own runs any code in the file that it downloads.
    mmengine_loaders.load_from_http = load_from_mmseg_segmenter
