"""Checkpoints of EoMT (tue-mps/eomt): queries and heads on timm's DINOv2, or on the DINOv3 of transformers."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import UserError
from ..keymap import Conversion, Rule, cat, cat_without_keys, convert, invert
from . import timm, timm_dinov3, transformers_dinov3
from ._plain import affine, linear, norm, run_blocks
from ._reference import depth

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
    encoder, names = [], {new: old for old, new in _RENAMED.items()}
    for rule in transformers_dinov3.rules(swiglu):
        sources = tuple(_renamed(key, names) for key in rule.sources)
        encoder.append(invertible(replace(rule, sources=sources)).below(_ENCODER, 'backbone.'))
    return encoder + HEAD_RULES


def _renamed(key: str, names: Mapping[str, str]) -> str:
    """Replace the beginning of a key that is in ``names``."""
    for old, new in names.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
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


def reference_logits(
    weights: Mapping[str, Tensor], image: Tensor, num_heads: int, eps: float, num_blocks: int
) -> tuple[Tensor, Tensor]:
    """Run an EoMT in plain torch on the names of the authors' code, without limits of the attention.

    Args:
        weights: as :func:`network` returns them.
        image: (B, 3, H, W) in float64, normalised, of the size that the position embedding is made for.
        num_heads: attention heads.
        eps: of the norms of the encoder.
        num_blocks: number of last blocks with queries.

    Returns:
        (B, Q, H / 4, W / 4) mask logits and (B, Q, K + 1) class logits.
    """
    if is_dinov3(weights):
        encoder = {_renamed(key.removeprefix(_ENCODER), _RENAMED): tensor for key, tensor in weights.items()}
        vit = transformers_dinov3.plain_vit(encoder, num_heads, eps)
    else:
        vit = timm.plain_vit(weights, eps, 'reg_token', _ENCODER)
    x, angles = vit.embedded(image)
    x = run_blocks(x, vit.blocks[:-num_blocks], num_heads, eps, angles)
    queries = weights['q.weight'].double()
    x = torch.cat((queries.expand(len(x), -1, -1), x), 1)
    x = norm(run_blocks(x, vit.blocks[-num_blocks:], num_heads, eps, angles), vit.norm, eps)
    P, Q = vit.patch.weight.shape[-1], len(queries)
    h, w = image.shape[2] // P, image.shape[3] // P
    queries, pixels = x[:, :Q], x[:, -h * w :].mT.unflatten(2, (h, w))
    for i in range(depth(weights, 'upscale.{}.conv1.weight')):
        layer = affine(weights, f'upscale.{i}.conv1')
        pixels = F.gelu(F.conv_transpose2d(pixels, layer.weight, layer.bias, stride=2))
        pixels = F.conv2d(pixels, weights[f'upscale.{i}.conv2.weight'].double(), padding=1, groups=pixels.shape[1])
        pixels = norm(pixels.movedim(1, -1), affine(weights, f'upscale.{i}.norm'), 1e-6).movedim(-1, 1)
    masks = queries
    for i in (0, 2, 4):
        masks = linear(F.gelu(masks) if i else masks, affine(weights, f'mask_head.{i}'))
    return torch.einsum('bqc,bchw->bqhw', masks, pixels), linear(queries, affine(weights, 'class_head'))
