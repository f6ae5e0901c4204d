"""Convert a file of pretrained weights of an encoder, and account for every tensor in it."""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..command_line import errors_in_one_line
from ..errors import UserError, describe
from ..files import refuse_existing, write_atomically, write_checkpoint
from ..models.layers import resize_patch_embed
from .architecture import Architecture, read_architecture, standard_heads, value_warnings
from .formats import find_encoder_format
from .formats._refused import refuse
from .keymap import Conversion
from .read import local_path, provenance, read_tensors
from .verify import Comparison, verify_encoder

_LONGEST_CONFIG = 1 << 20  # bytes of a config.json of transformers; they have about a thousand


@dataclass(frozen=True)
class Encoder:
    """A pretrained encoder in mmseg's layout.

    Attributes:
        source: path of the file it was read from.
        architecture: its sizes.
        conversion: its tensors and an account of every source key.
        eps: LayerNorm eps of the models that such files are written from.
        verified: comparison with the source, or None if it was not verified.
    """

    source: str
    architecture: Architecture
    conversion: Conversion
    eps: float
    verified: Comparison | None = None

    @property
    def warnings(self) -> list[str]:
        """What a user should know before training from these weights."""
        return value_warnings(self.source, self.conversion.state_dict)

    @property
    def backbone(self) -> dict[str, Any]:
        """The config that builds the encoder; its weights then load with ``strict=True``."""
        return self.architecture.backbone(self.eps)

    @property
    def assumptions(self) -> list[str]:
        """What the file does not hold, with the value to be set in the config."""
        assumed = ['exact (erf) GELU', f'LayerNorm eps {self.eps:g}']
        architecture = self.architecture
        width, size, P, N = (
            getattr(architecture, name) for name in ('embed_dims', 'img_size', 'patch_size', 'num_patches')
        )
        if architecture.ffn == 'swiglu':
            assumed[0] = 'SwiGLU'
        if architecture.num_heads is None:
            assumed.append(f'num_heads {standard_heads(width)} (width // 64)')
        if N:
            assumed.append(
                f'square grid of {size[0] // P}x{size[1] // P} patches' if size else f'grid of 1x{N} patches'
            )
        assumed += [f'{name} {value}' for name, value in architecture.options.items()]
        return assumed

    def __str__(self) -> str:
        lines = [f'read {self.source}: {self.architecture}', str(self.conversion)]
        lines.append(f'assumed, as the file does not hold it: {", ".join(self.assumptions)}')
        if self.verified:
            lines.append(f'verified: {self.verified}')
        lines.append(f'backbone={self.backbone}')
        return '\n'.join(lines)


def read_encoder(path: str, num_heads: int | None = None) -> Encoder:
    """Read pretrained weights of an encoder, and convert them to mmseg's layout in memory.

    Args:
        path: ``.npz``, ``.pth``, ``.safetensors`` or an index of several, in any layout of :mod:`.formats`.
        num_heads: attention heads, if the file does not hold their number. Default: that of a ``config.json`` of
            transformers beside the file, else heads of 64 channels.

    Raises:
        MissingFileError: no such file.
        UserError: names the file and what is wrong: it is damaged or refused, its layout is not known, keys are
            missing or unknown, or shapes contradict each other.
    """
    return to_encoder(path, read_tensors(path), num_heads or _heads_of_config(path))


def _heads_of_config(path: str) -> int | None:
    heads = transformers_config(path).get('num_attention_heads')
    return heads if isinstance(heads, int) and heads > 0 else None


def transformers_config(path: str) -> Mapping[str, Any]:
    """Return the ``config.json`` that transformers writes beside its weights, or an empty one.

    Args:
        path: of the weights, as :func:`~mmseg_segmenter.checkpoints.read.local_path`.

    Raises:
        UserError: it is too large, or not JSON.
    """
    config = os.path.join(os.path.dirname(local_path(path)), 'config.json')
    if not os.path.isfile(config):
        return {}
    if os.path.getsize(config) > _LONGEST_CONFIG:
        raise UserError(f'{config} has {os.path.getsize(config):,} bytes, expected at most {_LONGEST_CONFIG:,}')
    try:
        with open(config, encoding='utf-8') as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'{config} is not readable as JSON ({describe(error)}); correct or remove it') from None
    return content if isinstance(content, Mapping) else {}  # JSON of something else


def to_encoder(source: str, tensors: Mapping[str, Tensor], num_heads: int | None = None) -> Encoder:
    """Convert the tensors of an encoder to mmseg's layout.

    Args:
        source: path of the file they were read from, for messages.
        tensors: source key -> tensor.
        num_heads: attention heads, if the file does not hold their number.

    Raises:
        UserError: names the source and what is wrong: its layout is not known, keys are missing or unknown, or shapes
            contradict each other.
    """
    try:
        refuse(tensors)
        layout = find_encoder_format(tensors)
        conversion = layout.to_mmseg(tensors)
        options = layout.options(tensors) if hasattr(layout, 'options') else {}
        heads = layout.num_heads(tensors) or num_heads
        architecture = read_architecture(conversion.state_dict, conversion.origin, heads, options)
        if heads and architecture.embed_dims % heads:
            raise UserError(f'num_heads={heads} does not divide the width {architecture.embed_dims}')
    except ValueError as error:
        raise UserError(f'{source}: cannot convert, {error}') from None
    return Encoder(source, architecture, conversion, layout.EPS)


def with_patch_size(encoder: Encoder, patch_size: int) -> Encoder:
    """Resize the patch embedding of an encoder to patches of another size. The position embedding keeps its grid.

    Args:
        encoder: as :func:`read_encoder` returns it.
        patch_size: new side of a patch in pixels.

    Raises:
        UserError: ``patch_size`` is not positive.
    """
    key = 'patch_embed.projection.weight'
    state = dict(encoder.conversion.state_dict)
    state[key] = resize_patch_embed(state[key], patch_size)
    old = encoder.architecture
    architecture = read_architecture(state, num_heads=old.num_heads, options=old.options)
    return replace(encoder, architecture=architecture, conversion=replace(encoder.conversion, state_dict=state))


def convert_encoder(
    source: str,
    destination: str,
    force: bool = False,
    verify: bool = False,
    patch_size: int | None = None,
    num_heads: int | None = None,
) -> Encoder:
    """Convert a file of pretrained weights. The destination is written whole or not at all.

    It holds tensors and a small ``meta`` dict. It loads with ``weights_only=True``, and into plain mmseg.

    Args:
        source: as :func:`read_encoder`.
        destination: ``.pth`` file; its folder is made.
        force: replace an existing destination.
        verify: write the file only if it gives the same tokens as the source, see
            :func:`mmseg_segmenter.checkpoints.verify.verify_encoder`.
        patch_size: resize the patch embedding to this size, see :func:`with_patch_size`.
        num_heads: as :func:`read_encoder`.

    Raises:
        ExistingFileError: the destination exists and ``force`` is not set.
        NotAFileError: the destination is a folder.
        FileAccessError: the destination cannot be written.
        UserError: the tokens differ, or ``verify`` is combined with ``patch_size``, which changes the tokens.
        others: as :func:`read_encoder`.
    """
    if verify and patch_size is not None:
        raise UserError('--verify with --patch-size: with patches of another size the tokens differ')
    refuse_existing(destination, force)
    encoder = read_encoder(source, num_heads)
    if patch_size is not None:
        encoder = with_patch_size(encoder, patch_size)
    meta = dict(provenance(source, encoder.architecture), backbone=encoder.backbone)
    content = dict(state_dict=encoder.conversion.state_dict, meta=meta)
    folder, name = os.path.split(destination)

    def check(staging: str) -> Comparison:
        return verify_encoder(local_path(source), os.path.join(staging, name), encoder.architecture)

    writers = {name: lambda path: write_checkpoint(path, content)}
    return replace(encoder, verified=write_atomically(folder, writers, force, check if verify else None))


def convert_and_report(args: argparse.Namespace) -> None:
    """Convert an encoder as a command line says, and print what was converted.

    Args:
        args: of ``vit2mmseg.py``.

    Raises:
        SystemExit: as :func:`~mmseg_segmenter.command_line.errors_in_one_line`.
    """
    with errors_in_one_line():
        encoder = convert_encoder(
            args.source, args.destination, args.force, args.verify, args.patch_size, args.num_heads
        )
    for warning in encoder.warnings:
        print(f'warning: {warning}', file=sys.stderr)
    print(encoder)
    print(f'wrote {args.destination}')
