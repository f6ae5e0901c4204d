"""Official DINOv3 checkpoints (facebookresearch/dinov3)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..keymap import Conversion, Rule, convert
from . import timm

NAME = 'DINOv3'
CONVERTER = 'vit2mmseg.py'
EPS = 1e-5
REFINES = timm

# For masked image modelling; the norm of local crops in pretraining.
DROPPED = ('mask_token', 'local_cls_norm.*')


def _masked(tensors: Sequence[Tensor]) -> Tensor:
    bias, mask = tensors
    return torch.where(mask.bool(), bias, 0)  # the part of the keys, which may be NaN, is masked out


_QKV_BIAS = 'blocks.{i}.attn.qkv.bias'
_MASKED_BIAS = Rule((_QKV_BIAS, f'{_QKV_BIAS}_mask'), 'layers.{i}.attn.attn.in_proj_bias', _masked)
_SWIGLU_RULES = timm.swiglu_rules('blocks.{i}.mlp.w1', 'blocks.{i}.mlp.w2', 'blocks.{i}.mlp.w3')


def detect(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the keys are those of DINOv3: timm's, with storage tokens or the periods of RoPE."""
    return timm.detect(tensors) and any(key in tensors for key in ('storage_tokens', 'rope_embed.periods'))


def to_mmseg(state: Mapping[str, Tensor]) -> Conversion:
    """Convert the state_dict of a DINOv3 ``DinoVisionTransformer``. The mask of the qkv bias is applied.

    Args:
        state: source key -> tensor.

    Raises:
        UserError: lists missing and unknown keys.
    """
    swiglu = 'blocks.0.mlp.w1.weight' in state
    blocks = timm.block_rules({}) + _SWIGLU_RULES if swiglu else timm.block_rules(timm.MLP)
    if 'blocks.0.attn.qkv.bias_mask' in state:
        blocks = [rule for rule in blocks if rule.target != _MASKED_BIAS.target] + [_MASKED_BIAS]
    rules = [
        *timm.EMBEDDING_RULES,
        Rule(('storage_tokens',), 'register_tokens'),
        Rule(('rope_embed.periods',), 'rope_embed.periods'),
        *blocks,
    ]
    return timm.fill_qkv_bias(convert(state, rules, DROPPED))


def options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the rescaling of coordinates in training, which files do not hold."""
    return dict(rope=dict(base=100, rescale=2))


num_heads = timm.num_heads
source_sizes = timm.source_sizes


def reference_tokens(state: Mapping[str, Tensor], image: Tensor, num_heads: int) -> Tensor:
    """Run the encoder in plain torch, see :class:`mmseg_segmenter.checkpoints.formats.EncoderFormat`."""
    return timm.plain_vit(state, EPS, registers='storage_tokens').tokens(image, num_heads)
