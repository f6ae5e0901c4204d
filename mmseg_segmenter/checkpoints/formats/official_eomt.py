"""Checkpoints of EoMT (tue-mps/eomt): queries and heads on timm's DINOv2, or on the DINOv3 of transformers."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...errors import UserError
from ..keymap import Conversion, Rule, cat, cat_without_keys, convert, invert
from . import timm, timm_dinov3, transformers_dinov3

NAME = 'EoMT'
CONVERTER = 'eomt2mmseg.py'

# A Lightning module holds the network, its losses and its metrics.
PREFIX = 'network.'
DROPPED = ('encoder.pixel_mean', 'encoder.pixel_std', 'criterion.*', 'metrics.*', 'encoder.backbone.rope_embeddings.*')
_ENCODER = 'encoder.backbone.'
# What the code renames in the DINOv3 of transformers.
_RENAMED = {'patch_embed.': 'embeddings.', 'blocks.': 'layer.'}

HEAD_RULES = [
    Rule(('q.weight',), 'decode_head.query_embed.weight'),
    Rule(('attn_mask_probs',), 'decode_head.mask_probabilities', optional=True),
    *(
        Rule((f'{theirs}.{kind}',), f'decode_head.{ours}.{kind}')
        for theirs, ours in (
            ('class_head', 'cls_embed'),
            *((f'mask_head.{i}', f'mask_embed.{i}') for i in (0, 2, 4)),
        )
        for kind in ('weight', 'bias')
    ),
    *(
        Rule((f'upscale.{{i}}.{name}',), f'decode_head.upscale.{{i}}.{name}')
        for name in ('conv1.weight', 'conv1.bias', 'conv2.weight', 'norm.weight', 'norm.bias')
    ),
]


def detect(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the keys are those of an EoMT, or of a Lightning module around it."""
    return any(key in tensors for key in ('q.weight', f'{PREFIX}q.weight'))


def is_dinov3(state: Mapping[str, Tensor]) -> bool:
    """Return whether the encoder is a DINOv3 of transformers, given :func:`network`."""
    return f'{_ENCODER}patch_embed.register_tokens' in state


def network(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the network, without the prefixes of Lightning and of ``torch.compile``."""
    return {key.replace('_orig_mod.', '').removeprefix(PREFIX): tensor for key, tensor in state.items()}


def rules(dinov3: bool, swiglu: bool = False) -> list[Rule]:
    """Return the rules of all tensors of the network."""
    if not dinov3:
        return [rule.below(_ENCODER, 'backbone.') for rule in timm.rules(swiglu)] + HEAD_RULES
    encoder = []
    for rule in transformers_dinov3.rules(swiglu):
        sources = tuple(_renamed(key) for key in rule.sources)
        encoder.append(invertible(replace(rule, sources=sources)).below(_ENCODER, 'backbone.'))
    return encoder + HEAD_RULES


def _renamed(key: str) -> str:
    for theirs, transformers in _RENAMED.items():
        if key.startswith(transformers):
            return theirs + key.removeprefix(transformers)
    return key


def _without_keys(bias: Tensor) -> list[Tensor]:
    queries, keys, values = bias.chunk(3)
    if keys.any():
        raise UserError('the bias of the keys in attention is not 0, and this layout has none')
    return [queries, values]


def invertible(rule: Rule) -> Rule:
    """Return a rule with the inverse of its ``join``, which the rules of encoders alone do not have."""
    if rule.join is cat:
        return replace(rule, split=lambda tensor: list(tensor.chunk(len(rule.sources))))
    return replace(rule, split=_without_keys) if rule.join is cat_without_keys else rule


def to_mmseg(state: Mapping[str, Tensor], num_heads: int | None = None) -> Conversion:
    """Convert the ``state_dict`` of the authors' code.

    Args:
        state: source key -> tensor; for DINOv3 the sums of deltas and base.
        num_heads: attention heads, for the periods of DINOv3; default heads of 64 channels.

    Raises:
        UserError: lists missing and unknown keys.
    """
    state = network(state)
    dinov3 = is_dinov3(state)
    conversion = timm.fill_qkv_bias(convert(state, rules(dinov3, _has_swiglu(state)), DROPPED))
    if dinov3:
        width = conversion.state_dict['backbone.cls_token'].shape[-1]
        conversion.state_dict['backbone.rope_embed.periods'] = timm_dinov3.periods(
            width // num_heads if num_heads else 64
        )
    return conversion


def from_mmseg(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert an ``EoMT`` to the layout of the authors' code.

    Args:
        state: whole segmentor in mmseg's layout.

    Raises:
        UserError: lists missing and unknown keys.
    """
    dinov3 = 'backbone.rope_embed.periods' in state
    state = {key: tensor for key, tensor in state.items() if key != 'backbone.rope_embed.periods'}
    inverted = invert(state, rules(dinov3, 'backbone.layers.0.ffn.w12.weight' in state))
    return {PREFIX + key: tensor for key, tensor in inverted.items()}


def options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of ``SegmenterViT`` that the tensors do not tell."""
    return transformers_dinov3.options({}) if is_dinov3(network(state)) else dict(interpolate_antialias=True)


def _has_swiglu(state: Mapping[str, Tensor]) -> bool:
    encoder = {key.removeprefix(_ENCODER): tensor for key, tensor in state.items() if key.startswith(_ENCODER)}
    return f'{_ENCODER}blocks.0.mlp.gate_proj.weight' in state or timm.has_packed_swiglu(encoder)
