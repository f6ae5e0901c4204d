"""Official DINOv2 checkpoints (facebookresearch/dinov2), with and without registers."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..keymap import Conversion, Rule, convert
from . import timm

NAME = 'DINOv2'
CONVERTER = 'vit2mmseg.py'
EPS = 1e-6
REFINES = timm

_SWIGLU = {'mlp.w12': 'ffn.w12', 'mlp.w3': 'ffn.w3'}
# For masked image modelling.
DROPPED = ('mask_token',)
# Files of models that were trained in chunks number their blocks blocks.CHUNK.BLOCK.
_CHUNK = re.compile(r'^blocks\.\d+\.(?=\d+\.)')


def detect(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the keys are those of DINOv2: timm's, a mask token or registers, and no decoder (MAE)."""
    marks = ('mask_token', 'register_tokens')
    others = ('decoder_', 'storage_tokens', 'rope_embed.')
    return (
        timm.detect(tensors)
        and any(mark in tensors for mark in marks)
        and not any(key.startswith(others) for key in tensors)
    )


def to_mmseg(state: Mapping[str, Tensor]) -> Conversion:
    """Convert the state_dict of a ``DinoVisionTransformer``.

    Args:
        state: source key -> tensor.

    Raises:
        UserError: lists missing and unknown keys.
    """
    state = _unchunked(state)
    swiglu = 'blocks.0.mlp.w12.weight' in state
    rules = [
        *timm.EMBEDDING_RULES,
        Rule(('pos_embed',), 'pos_embed'),
        Rule(('register_tokens',), 'register_tokens', optional=True),
        *timm.block_rules(_SWIGLU if swiglu else timm.MLP),
    ]
    return timm.fill_qkv_bias(convert(state, rules, DROPPED))


def options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return how DINOv2 resizes its position embedding; it differs with and without registers."""
    return dict(interpolate_antialias=True) if 'register_tokens' in state else dict(interpolate_offset=0.1)


num_heads = timm.num_heads
source_sizes = timm.source_sizes


def reference_tokens(state: Mapping[str, Tensor], image: Tensor, num_heads: int) -> Tensor:
    """Run the encoder in plain torch, see :class:`mmseg_segmenter.checkpoints.formats.EncoderFormat`."""
    return timm.plain_vit(_unchunked(state), EPS, registers='register_tokens').tokens(image, num_heads)


def _unchunked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {_CHUNK.sub('blocks.', key): tensor for key, tensor in state.items()}
