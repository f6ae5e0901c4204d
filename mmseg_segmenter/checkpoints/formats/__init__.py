"""Checkpoint formats of other projects, one file each.

To add a format, add one file here; nothing else has to know its name. A format is a module with the attributes of
:class:`Format`, and one of an encoder with those of :class:`EncoderFormat`. Modules whose names start with an
underscore hold what several formats share.
"""

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Protocol, cast

from torch import Tensor

from ...errors import UserError
from ..keymap import Conversion, listed
from ._reference import SourceSizes


class Format(Protocol):
    """What a module in this package defines.

    Attributes:
        NAME: name of the layout for messages.
        CONVERTER: file name of the tool that converts such checkpoints.

    A module may also define ``REFINES``, the module of a more general format that recognises the same files. Where
    both recognise a file, the module that defines ``REFINES`` is used.
    """

    NAME: str
    CONVERTER: str

    def detect(self, tensors: Mapping[str, Tensor]) -> bool:
        """Return whether the keys are those of this format. Some may be missing or unknown."""

    def to_mmseg(self, state: Mapping[str, Tensor]) -> Conversion:
        """Convert to mmseg's layout."""


class EncoderFormat(Format, Protocol):
    """A format of a ViT encoder without a decoder.

    Attributes:
        EPS: LayerNorm eps of the models that such files are written from. Files do not hold it.

    A module may also define ``options(state)``, the arguments of ``SegmenterViT`` that the tensors in mmseg's layout do
    not tell, such as the way its position embedding is resized.
    """

    EPS: float

    def num_heads(self, state: Mapping[str, Tensor]) -> int | None:
        """Return the number of attention heads, or None if the file does not hold it."""

    def source_sizes(self, state: Mapping[str, Tensor]) -> SourceSizes:
        """Read the sizes of the model from the tensors as they are in the file."""

    def reference_tokens(self, state: Mapping[str, Tensor], image: Tensor, num_heads: int) -> Tensor:
        """Run the encoder in plain torch, on the keys and layouts of the file.

        Args:
            state: source key -> tensor.
            image: (B, channels, H, W) in float64, of the size that the position embedding is made for.
            num_heads: attention heads.

        Returns:
            (B, prefix + N, C) tokens after the last LayerNorm, the class token first.
        """


@functools.cache
def formats() -> tuple[Format, ...]:
    """Return the modules of this package that define a format."""
    names = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith('_')]
    return tuple(cast(Format, importlib.import_module(f'{__name__}.{name}')) for name in names)


def find_format(tensors: Mapping[str, Tensor]) -> Format:
    """Return the format of a checkpoint.

    Args:
        tensors: source key -> tensor.

    Raises:
        UserError: no format has such keys.
    """
    found = [each for each in formats() if each.detect(tensors)]
    refined = [getattr(each, 'REFINES', None) for each in found]
    found = [each for each in found if each not in refined]
    if not found:
        raise UserError(
            f'the keys ({listed(list(tensors), most=4)}) are those of no known layout; expected one of '
            f'{", ".join(each.NAME for each in formats())}'
        )
    return found[0]


def is_encoder(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a checkpoint is one of an encoder in one of the formats, rather than in mmseg's layout."""
    return any(each.detect(tensors) and hasattr(each, 'reference_tokens') for each in formats())


def find_encoder_format(tensors: Mapping[str, Tensor]) -> EncoderFormat:
    """Return the format of a checkpoint of an encoder.

    Args:
        tensors: source key -> tensor.

    Raises:
        UserError: no format has such keys, or the checkpoint is one of a whole segmentor.
    """
    found = find_format(tensors)
    if not hasattr(found, 'reference_tokens'):
        raise UserError(
            f'found the {found.NAME} layout of a whole segmentor, expected one of an encoder; {found.CONVERTER} '
            'converts it'
        )
    return cast(EncoderFormat, found)
