"""Checkpoints of the official Segmenter (rstrudel/segmenter)."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..keymap import Conversion, Rule, convert, invert
from . import timm
from ._plain import affine, linear, norm, run_blocks

NAME = 'official'
CONVERTER = 'segm2mmseg.py'
EPS = 1e-5  # torch's default


def _transposed(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0].T  # the official code computes x @ W; a Linear holds W.T


def _transposed_back(tensor: Tensor) -> list[Tensor]:
    return [tensor.T]


def _conv1x1(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0][:, :, None, None]  # (K, D) -> (K, D, 1, 1)


def _linear(tensor: Tensor) -> list[Tensor]:
    return [tensor[:, :, 0, 0]]  # (K, D, 1, 1) -> (K, D)


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
# The ImageNet classifier, which Segmenter does not use.
DROPPED = ('encoder.head.*', 'encoder.head_dist.*')


def detect(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the keys are those of an official Segmenter."""
    return any(key.startswith('encoder.') for key in tensors) and any(key.startswith('decoder.') for key in tensors)


def to_mmseg(state: Mapping[str, Tensor]) -> Conversion:
    """Convert the ``checkpoint['model']`` of the official code.

    Args:
        state: source key -> tensor.

    Raises:
        UserError: lists missing and unknown keys.
    """
    decoder = LINEAR_RULES if 'decoder.head.weight' in state else MASK_RULES
    return timm.fill_qkv_bias(convert(state, ENCODER_RULES + decoder, DROPPED))


def from_mmseg(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a ``Segmenter`` to the official layout, without the unused ``encoder.head``.

    Args:
        state: whole segmentor in mmseg's layout.

    Raises:
        UserError: lists missing and unknown keys.
    """
    decoder = LINEAR_RULES if 'decode_head.conv_seg.weight' in state else MASK_RULES
    return invert(state, ENCODER_RULES + decoder)


def decoder_heads(width: int, encoder_heads: int) -> int:
    """Return the attention heads of a mask decoder: width // 64 as in ``segm/model/factory.py``.

    A decoder that is narrower than those of the official code has as many as the encoder.
    """
    return width // 64 or encoder_heads


def reference_logits(weights: Mapping[str, Tensor], image: Tensor, num_heads: int) -> Tensor:
    """Run the official Segmenter in plain torch on its own keys, up to the upsampling.

    Args:
        weights: ``checkpoint['model']``.
        image: (B, 3, H, W) in float64, of the size that the position embedding is made for.
        num_heads: attention heads of the encoder.

    Returns:
        (B, K, h, w) logits at patch resolution.
    """
    x = timm.plain_vit(weights, EPS, 'reg_token', 'encoder.').tokens(image, num_heads)
    x = x[:, 2 if 'encoder.dist_token' in weights else 1 :]
    if 'decoder.head.weight' in weights:
        x = linear(x, affine(weights, 'decoder.head'))
    else:
        x = linear(x, affine(weights, 'decoder.proj_dec'))
        cls_emb = weights['decoder.cls_emb'].double()
        x = torch.cat((x, cls_emb.expand(len(x), -1, -1)), 1)  # (B, N + K, C): patches, then classes
        x = run_blocks(x, timm.plain_blocks(weights, 'decoder.'), decoder_heads(x.shape[-1], num_heads), EPS)
        x = norm(x, affine(weights, 'decoder.decoder_norm'), EPS)
        K = cls_emb.shape[1]
        patches, classes = (
            tokens @ weights[f'decoder.proj_{name}'].double()
            for tokens, name in ((x[:, :-K], 'patch'), (x[:, -K:], 'classes'))
        )
        x = F.normalize(patches, dim=-1) @ F.normalize(classes, dim=-1).transpose(1, 2)  # (B, N, K)
        x = norm(x, affine(weights, 'decoder.mask_norm'), EPS)
    P = weights['encoder.patch_embed.proj.weight'].shape[-1]
    return x.transpose(1, 2).unflatten(2, (image.shape[2] // P, image.shape[3] // P))
