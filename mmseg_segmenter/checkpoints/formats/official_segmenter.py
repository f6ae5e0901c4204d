"""Checkpoints of the official Segmenter (rstrudel/segmenter)."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..keymap import Conversion, Rule, convert, invert
from . import timm


def _transposed(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0].T  # used as x @ W; a Linear holds W.T


def _transposed_back(tensor: Tensor) -> list[Tensor]:
    return [tensor.T]


def _conv1x1(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0][:, :, None, None]  # (K, D) -> (K, D, 1, 1)


def _linear(tensor: Tensor) -> list[Tensor]:
    return [tensor[:, :, 0, 0]]


ENCODER_RULES = [rule.below('encoder.', 'backbone.') for rule in timm.RULES]
LINEAR_RULES = [
    Rule(('decoder.head.weight',), 'decode_head.conv_seg.weight', _conv1x1, _linear),
    Rule(('decoder.head.bias',), 'decode_head.conv_seg.bias'),
]
MASK_RULES = [
    *(rule.below('decoder.', 'decode_head.') for rule in timm.BLOCK_RULES),
    Rule(('decoder.cls_emb',), 'decode_head.cls_emb'),
    Rule(('decoder.proj_dec.weight',), 'decode_head.dec_proj.weight'),
    Rule(('decoder.proj_dec.bias',), 'decode_head.dec_proj.bias'),
    Rule(('decoder.proj_patch',), 'decode_head.patch_proj.weight', _transposed, _transposed_back),
    Rule(('decoder.proj_classes',), 'decode_head.classes_proj.weight', _transposed, _transposed_back),
    *(
        Rule((f'decoder.{norm}.{kind}',), f'decode_head.{norm}.{kind}')
        for norm in ('decoder_norm', 'mask_norm')
        for kind in ('weight', 'bias')
    ),
]
# The ImageNet classifier, which Segmenter never uses.
DROPPED = ('encoder.head.*', 'encoder.head_dist.*')


def to_mmseg(state: Mapping[str, Tensor]) -> Conversion:
    """Convert ``checkpoint['model']`` of the official code.

    Raises:
        ValueError: lists missing and unknown keys.
    """
    decoder = LINEAR_RULES if 'decoder.head.weight' in state else MASK_RULES
    return convert(state, ENCODER_RULES + decoder, DROPPED)


def from_mmseg(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse; the official model also wants the unused ``encoder.head``.

    Raises:
        ValueError: lists missing and unknown keys.
    """
    decoder = LINEAR_RULES if 'decode_head.conv_seg.weight' in state else MASK_RULES
    return invert(state, ENCODER_RULES + decoder)
