"""Convert a file with a pretrained encoder, and account for it."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from ..command_line import conversion_parser, errors_in_one_line
from ..errors import UserError
from ..files import refuse_existing, write_atomically, write_checkpoint
from .architecture import Architecture, read_architecture, value_warnings
from .formats import augreg, timm
from .keymap import Conversion, listed
from .patch_size import resize_patch_embed
from .read import local_path, provenance, read_tensors
from .verify import Comparison, verify_encoder


@dataclass(frozen=True)
class Encoder:
    """A pretrained encoder in mmseg's layout.

    Attributes:
        source: path of the file it was read from.
        architecture: its sizes.
        conversion: tensors and the account of every source key.
        verified: outputs of both files, if they were compared.
    """

    source: str
    architecture: Architecture
    conversion: Conversion
    verified: Comparison | None = None

    @property
    def warnings(self) -> list[str]:
        """What a user should know before training from these weights."""
        return value_warnings(self.source, self.conversion.state_dict)

    def __str__(self) -> str:
        dropped = listed(self.conversion.dropped) or 'nothing'
        sources = sum(map(len, self.conversion.origin.values()))
        return (
            f'read {self.source}: {self.architecture}\n'
            f'mapped {sources} tensors to {len(self.conversion.state_dict)}; dropped {dropped}'
            + (f'\nverified: {self.verified}' if self.verified else '')
        )


def read_encoder(path: str) -> Encoder:
    """Read an AugReg ``.npz``, or a timm or DeiT ``.pth`` or ``.safetensors``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: names the file and what is wrong: damaged or refused, keys
            missing or unknown, shapes that contradict each other.
    """
    return to_encoder(path, read_tensors(path))


def to_encoder(source: str, tensors: Mapping[str, Tensor]) -> Encoder:
    """Convert the tensors of an AugReg, timm or DeiT encoder.

    Args:
        source: where they are from, for messages.
        tensors: by their foreign names.

    Raises:
        UserError: names the source and what is wrong: keys missing or unknown, shapes that contradict each other.
    """
    try:
        conversion = _to_mmseg(tensors)
        architecture = read_architecture(conversion.state_dict, conversion.origin, augreg.num_heads(tensors))
    except ValueError as error:
        raise UserError(f'{source}: cannot convert, {error}') from None
    return Encoder(source, architecture, conversion)


def is_foreign(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether these are the tensors of a JAX or timm ViT, rather than of mmseg's layout."""
    return any('/' in key for key in tensors) or {'patch_embed.proj.weight', 'blocks.0.norm1.weight'} <= tensors.keys()


def _to_mmseg(tensors: Mapping[str, Tensor]) -> Conversion:
    is_jax = any('/' in key for key in tensors)
    return augreg.to_mmseg(tensors) if is_jax else timm.to_mmseg(tensors)


def with_patch_size(encoder: Encoder, patch_size: int) -> Encoder:
    """The encoder for patches of another size; its position embedding keeps its grid.

    Raises:
        ValueError: ``patch_size`` is not positive.
    """
    key = 'patch_embed.projection.weight'
    state = dict(encoder.conversion.state_dict)
    state[key] = resize_patch_embed(state[key], patch_size)
    architecture = read_architecture(state, num_heads=encoder.architecture.num_heads)
    return replace(encoder, architecture=architecture, conversion=replace(encoder.conversion, state_dict=state))


def convert_encoder(
    source: str, destination: str, force: bool = False, verify: bool = False, patch_size: int | None = None
) -> Encoder:
    """Convert a file; the destination is written whole or not at all.

    It holds plain tensors and a small ``meta`` dict, loads with
    ``weights_only=True`` and in plain mmseg.

    Args:
        source: as :func:`read_encoder`.
        destination: ``.pth`` file; its folder is made.
        force: replace an existing destination.
        verify: write it only if it gives the same tokens as the source, see
            :func:`mmseg_segmenter.checkpoints.verify.verify_encoder`.
        patch_size: resize the patch embedding, see :func:`with_patch_size`.

    Raises:
        FileExistsError: the destination exists and ``force`` is not set.
        IsADirectoryError: the destination is a folder.
        OSError: cannot write there.
        ValueError: the tokens differ, or ``verify`` with ``patch_size``, as they then must.
        others: as :func:`read_encoder`.
    """
    if verify and patch_size is not None:
        raise UserError('--verify with --patch-size: with patches of another size the tokens differ')
    refuse_existing(destination, force)
    encoder = read_encoder(source)
    if patch_size is not None:
        encoder = with_patch_size(encoder, patch_size)
    meta = provenance(source, encoder.architecture)
    content = dict(state_dict=encoder.conversion.state_dict, meta=meta)
    folder, name = os.path.split(destination)

    def check(staging: str) -> Comparison:
        return verify_encoder(local_path(source), os.path.join(staging, name), encoder.architecture)

    writers = {name: lambda path: write_checkpoint(path, content)}
    return replace(encoder, verified=write_atomically(folder, writers, force, check if verify else None))


def command_line(description: str | None, argv: list[str] | None = None) -> None:
    """Convert an encoder as the command line says: ``SOURCE DESTINATION [--force] [--verify] [--patch-size P]``.

    Args:
        description: first line of the help text.
        argv: arguments; default: those of the process.

    Raises:
        SystemExit: the arguments are wrong, or as :func:`~mmseg_segmenter.command_line.errors_in_one_line`.
    """
    parser = conversion_parser(
        description,
        source='pretrained weights',
        destination='.pth file to write, for init_cfg=dict(type="Pretrained", checkpoint=...)',
    )
    parser.add_argument('--patch-size', type=int, help='resize the patch embedding to patches of this many pixels')
    args = parser.parse_args(argv)
    with errors_in_one_line():
        encoder = convert_encoder(args.source, args.destination, args.force, args.verify, args.patch_size)
    for warning in encoder.warnings:
        print(f'warning: {warning}', file=sys.stderr)
    print(encoder)
    print(f'wrote {args.destination}')
