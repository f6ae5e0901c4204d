"""Official MAE checkpoints (facebookresearch/mae) of pretraining, with the decoder."""

from collections.abc import Mapping

from torch import Tensor

from ..keymap import Conversion, convert
from . import timm

NAME = 'MAE'
CONVERTER = 'vit2mmseg.py'
EPS = 1e-6
REFINES = timm

# The decoder, which reconstructs masked patches.
DROPPED = ('decoder_*', 'mask_token')


def detect(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the keys are timm's, with the decoder of MAE."""
    return timm.detect(tensors) and 'decoder_pos_embed' in tensors


def to_mmseg(state: Mapping[str, Tensor]) -> Conversion:
    """Convert the encoder.

    Args:
        state: source key -> tensor.

    Raises:
        UserError: lists missing and unknown keys.
    """
    return timm.fill_qkv_bias(convert(state, timm.RULES, DROPPED))


num_heads = timm.num_heads
source_sizes = timm.source_sizes
reference_tokens = timm.reference_tokens
