"""DINOv3 in timm, as a model of its class ``Eva``, with a qkv bias (``_qkvb``) or without."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..keymap import Conversion, Rule, cat_without_keys, convert
from . import dinov3, timm
from ._plain import Affine, PlainBlock, PlainViT, affine, optional
from ._reference import depth

NAME = "timm's DINOv3"
CONVERTER = 'vit2mmseg.py'
EPS = dinov3.EPS
REFINES = timm

_SWIGLU_RULES = timm.swiglu_rules('blocks.{i}.mlp.fc1_g', 'blocks.{i}.mlp.fc1_x', 'blocks.{i}.mlp.fc2')


def detect(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the keys are those of ``Eva`` with registers and without position embedding."""
    return (
        timm.detect(tensors)
        and 'reg_token' in tensors
        and 'blocks.0.gamma_1' in tensors
        and ('pos_embed' not in tensors)
    )


def to_mmseg(state: Mapping[str, Tensor]) -> Conversion:
    """Convert the state_dict of timm's ``vit_*_dinov3`` models, and add the periods of RoPE.

    Args:
        state: source key -> tensor.

    Raises:
        UserError: lists missing and unknown keys.
    """
    swiglu = 'blocks.0.mlp.fc1_g.weight' in state
    blocks = timm.block_rules({}) + _SWIGLU_RULES if swiglu else timm.block_rules(timm.MLP)
    rules = [
        *timm.EMBEDDING_RULES,
        Rule(('reg_token',), 'register_tokens'),
        *(rule for rule in blocks if not rule.target.endswith(('ls1.weight', 'ls2.weight', 'in_proj_bias'))),
        *(Rule((f'blocks.{{i}}.gamma_{n}',), f'layers.{{i}}.ls{n}.weight') for n in (1, 2)),
        Rule(
            ('blocks.{i}.attn.q_bias', 'blocks.{i}.attn.v_bias'),
            'layers.{i}.attn.attn.in_proj_bias',
            cat_without_keys,
            optional=True,
        ),
    ]
    conversion = timm.fill_qkv_bias(convert(state, rules, timm.DROPPED))
    conversion.state_dict['rope_embed.periods'] = periods(64)
    return conversion


def periods(head_dims: int) -> Tensor:
    """Return the periods of DINOv3, (head_dims / 4,), which other projects do not store."""
    return 100 ** (2 * torch.arange(head_dims // 4, dtype=torch.float32) / (head_dims // 2))


def options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """See :func:`.dinov3.options`."""
    return dinov3.options(state)


num_heads = timm.num_heads
source_sizes = timm.source_sizes


def reference_tokens(state: Mapping[str, Tensor], image: Tensor, num_heads: int) -> Tensor:
    """Run the encoder in plain torch, see :class:`mmseg_segmenter.checkpoints.formats.EncoderFormat`."""
    blocks = []
    for i in range(depth(state, 'blocks.{}.norm1.weight')):
        name = f'blocks.{i}'
        weight, q, v = (state.get(f'{name}.attn.{key}') for key in ('qkv.weight', 'q_bias', 'v_bias'))
        assert weight is not None
        bias = None if q is None or v is None else torch.cat((q, 0 * q, v)).double()
        gate = f'{name}.mlp.fc1_g'
        swiglu = f'{gate}.weight' in state
        blocks.append(
            PlainBlock(
                norm1=affine(state, f'{name}.norm1'),
                qkv=Affine(weight.double(), bias),
                proj=affine(state, f'{name}.attn.proj'),
                norm2=affine(state, f'{name}.norm2'),
                up=affine(state, f'{name}.mlp.fc1_x' if swiglu else f'{name}.mlp.fc1'),
                down=affine(state, f'{name}.mlp.fc2'),
                gate=affine(state, gate) if swiglu else None,
                ls1=optional(state, f'{name}.gamma_1'),
                ls2=optional(state, f'{name}.gamma_2'),
            )
        )
    return PlainViT(
        patch=affine(state, 'patch_embed.proj'),
        prefix=[state['cls_token'], state['reg_token']],
        pos_embed=None,
        blocks=blocks,
        norm=affine(state, 'norm'),
        eps=EPS,
        periods=periods(blocks[0].proj.weight.shape[0] // num_heads),
    ).tokens(image, num_heads)
