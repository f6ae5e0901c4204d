"""Convert checkpoints of EoMT (tue-mps/eomt, or transformers) to mmseg's layout, and back."""

import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..files import refuse_existing, write_atomically, write_checkpoint
from .architecture import Architecture, read_architecture, standard_heads, value_warnings
from .convert import read_encoder, transformers_config
from .formats import official_eomt, transformers_eomt
from .keymap import Conversion
from .read import provenance, read_tensors
from .verify import Comparison, verify_eomt

_PERIODS = 'rope_embed.periods'


@dataclass(frozen=True)
class EoMTCheckpoint:
    """An EoMT in mmseg's layout.

    Attributes:
        source: path of the file it was read from.
        weights: the tensors of the network under the names of the authors' code, without deltas.
        conversion: tensors and an account of every source key.
        architecture: sizes of the encoder.
        eps: LayerNorm eps.
        base: file to which the deltas were added, or None.
        verified: comparison with a plain forward, or None if it was not verified.
    """

    source: str
    weights: dict[str, Tensor]
    conversion: Conversion
    architecture: Architecture
    eps: float
    base: str | None = None
    verified: Comparison | None = None

    @property
    def model(self) -> dict[str, Any]:
        """The config that builds the model; its weights then load with ``strict=True``."""
        state = self.conversion.state_dict
        num_queries, width = state['decode_head.query_embed.weight'].shape
        return dict(
            type='EoMT',
            backbone=self.architecture.backbone(self.eps),
            decode_head=dict(
                type='EoMTHead',
                in_channels=width,
                num_classes=len(state['decode_head.cls_embed.bias']) - 1,
                num_queries=num_queries,
                num_blocks=len(state['decode_head.mask_probabilities']),
                patch_size=self.architecture.patch_size,
            ),
        )

    @property
    def warnings(self) -> list[str]:
        """What a user should know before using these weights."""
        return value_warnings(self.source, self.conversion.state_dict)

    def __str__(self) -> str:
        head = self.model['decode_head']
        lines = [
            f'read {self.source}: {self.architecture}; {head["num_queries"]} queries in the last {head["num_blocks"]} '
            f'blocks, {head["num_classes"]} classes',
            str(self.conversion),
        ]
        if self.base:
            lines.append(f'added the encoder of {self.base}')
        if self.verified:
            lines.append(f'verified: {self.verified}')
        return '\n'.join([*lines, f'model={self.model}'])


def read_eomt(
    source: str, base: str | None = None, whole: bool = False, num_heads: int | None = None
) -> EoMTCheckpoint:
    """Read an EoMT, and convert it to mmseg's layout in memory.

    Args:
        source: file of the authors' code or of transformers.
        base: file of the pretrained DINOv3, in any layout of :mod:`.formats`, to which the deltas that the authors
            release are added.
        whole: a DINOv3 of the authors' code holds the weights, not deltas. The files of transformers do.
        num_heads: attention heads. Default: those of a ``config.json`` beside the file, else heads of 64 channels.

    Raises:
        MissingFileError: no such file.
        UserError: names the file and what is wrong: another layout, deltas without base, or a base of another size.
    """
    tensors = read_tensors(source)
    config = transformers_config(source)
    if official_eomt.detect(tensors):
        weights, from_transformers = official_eomt.network(tensors), False
    elif transformers_eomt.detect(tensors):
        weights, from_transformers = transformers_eomt.as_official(tensors), True
    else:
        raise UserError(f'{source}: the keys ({", ".join(list(tensors)[:3])}, ...) are not those of an EoMT')
    dinov3 = official_eomt.is_dinov3(weights)
    if dinov3 and not (whole or from_transformers) and base is None:
        raise UserError(
            f'{source} has a DINOv3 encoder, which is released as deltas: give the file of the pretrained DINOv3 with '
            '--base, or --whole if the file holds the weights themselves'
        )
    if base is not None and (not dinov3 or whole or from_transformers):
        raise UserError(f'{source} holds whole weights, not deltas of a DINOv3; leave out --base {base}')
    eps = config.get('layer_norm_eps') or (1e-5 if dinov3 else 1e-6)
    try:
        width = weights['q.weight'].shape[-1]
        heads = num_heads or config.get('num_attention_heads') or standard_heads(width)
        if width % heads:
            raise UserError(f'num_heads={heads} does not divide the width {width}')
        conversion = official_eomt.to_mmseg(weights, heads)
        if base is not None:
            _add_base(conversion, source, base, heads)
        state = conversion.state_dict
        state.setdefault('decode_head.mask_probabilities', torch.zeros(config.get('num_blocks', 4)))
        encoder = {key.removeprefix('backbone.'): t for key, t in state.items() if key.startswith('backbone.')}
        origin = {key.removeprefix('backbone.'): keys for key, keys in conversion.origin.items()}
        architecture = read_architecture(encoder, origin, heads, official_eomt.options(weights))
    except ValueError as error:
        raise UserError(f'{source}: cannot convert, {error}') from None
    if base is not None:
        weights = official_eomt.network(official_eomt.from_mmseg(state))
    return EoMTCheckpoint(source, weights, conversion, architecture, eps, base)


def _add_base(conversion: Conversion, source: str, base: str, num_heads: int) -> None:
    """Add the tensors of a pretrained encoder to deltas in mmseg's layout, in place.

    Raises:
        UserError: the base has other keys or sizes.
    """
    encoder = read_encoder(base, num_heads)
    state, added = conversion.state_dict, encoder.conversion.state_dict
    prefix = 'backbone.'
    expected = {key.removeprefix(prefix) for key in state if key.startswith(prefix)}
    if difference := sorted(expected ^ added.keys()):
        raise UserError(f'{base} is another encoder than the base of {source}: only one of them has {difference[0]}')
    for key, tensor in added.items():
        delta = state[prefix + key]
        if delta.shape != tensor.shape and key != _PERIODS:
            raise UserError(
                f'{base} is of another size than the base of {source}: {key} is {tuple(tensor.shape)}, expected '
                f'{tuple(delta.shape)}'
            )
    for key, tensor in added.items():
        if key != _PERIODS:
            state[prefix + key] = state[prefix + key] + tensor
    # The code adds all buffers too, and this one starts at 1.
    probabilities = 'decode_head.mask_probabilities'
    if probabilities in state:
        state[probabilities] = (state[probabilities] + 1).clamp(0, 1)


def convert_eomt(
    source: str,
    destination: str,
    base: str | None = None,
    whole: bool = False,
    force: bool = False,
    verify: bool = False,
    num_heads: int | None = None,
) -> EoMTCheckpoint:
    """Convert an EoMT. The destination is written whole or not at all.

    Args:
        source: as :func:`read_eomt`.
        destination: ``.pth`` file; its folder is made. Its ``meta['model']`` is the config of the model.
        base: as :func:`read_eomt`.
        whole: as :func:`read_eomt`.
        force: replace an existing destination.
        verify: write the file only if it gives the same masks and classes as a plain forward on the source's keys.
        num_heads: as :func:`read_eomt`.

    Raises:
        ExistingFileError: the destination exists and ``force`` is not set.
        FileAccessError: the destination cannot be written.
        UserError: outputs differ, or as :func:`read_eomt`.
    """
    refuse_existing(destination, force)
    checkpoint = read_eomt(source, base, whole, num_heads)
    meta: dict[str, Any] = dict(provenance(source, checkpoint.architecture), model=checkpoint.model)
    content = dict(state_dict=checkpoint.conversion.state_dict, meta=meta)
    folder, name = os.path.split(destination)

    def check(staging: str) -> Comparison:
        heads = checkpoint.model['backbone']['num_heads']
        return verify_eomt(checkpoint.weights, heads, checkpoint.eps, checkpoint.model, os.path.join(staging, name))

    writers = {name: lambda path: write_checkpoint(path, content)}
    return replace(checkpoint, verified=write_atomically(folder, writers, force, check if verify else None))


def write_official_eomt(source: str, destination: str, force: bool = False) -> None:
    """Convert an EoMT in mmseg's layout to the layout of the authors' code, with whole weights.

    Args:
        source: checkpoint of an ``EoMT``.
        destination: file to write, with the tensors below ``state_dict``.
        force: replace an existing destination.

    Raises:
        ExistingFileError: the destination exists and ``force`` is not set.
        UserError: the checkpoint is of another model.
    """
    refuse_existing(destination, force)
    try:
        state = official_eomt.from_mmseg(read_tensors(source))
    except ValueError as error:
        raise UserError(f'{source}: cannot convert, {error}') from None
    folder, name = os.path.split(destination)
    write_atomically(folder, {name: lambda path: write_checkpoint(path, dict(state_dict=state))}, force)
