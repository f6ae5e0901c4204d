"""AugReg and original ViTs: flat ``.npz`` files written by JAX/Flax.

Layouts, per tensor, are stated where they are undone. D width, H heads,
d = D / H, P patch side, N patches.
"""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from ..keymap import Conversion, Rule, cat, convert

_BLOCK = 'Transformer/encoderblock_{i}/'
_ATTENTION = _BLOCK + 'MultiHeadDotProductAttention_1/'
# Files written by today's Flax number the parts of a block by kind.
_FLAX_NAMES = {
    'MultiHeadDotProductAttention_0/': 'MultiHeadDotProductAttention_1/',
    'LayerNorm_1/': 'LayerNorm_2/',
    'MlpBlock_0/': 'MlpBlock_3/',
}


def _patches(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0].permute(3, 2, 0, 1)  # [P, P, 3, D] -> (D, 3, P, P)


def _linear(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0].T  # [in, out] -> (out, in)


def _qkv_weight(tensors: Sequence[Tensor]) -> Tensor:
    return cat([t.flatten(1).T for t in tensors])  # 3 x [D, H, d] -> (3D, D)


def _qkv_bias(tensors: Sequence[Tensor]) -> Tensor:
    return cat([t.flatten() for t in tensors])  # 3 x [H, d] -> (3D,)


def _out_weight(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0].flatten(0, 1).T  # [H, d, D] -> (D, D)


def _norm(source: str, target: str) -> list[Rule]:
    return [Rule((f'{source}/scale',), f'{target}.weight'), Rule((f'{source}/bias',), f'{target}.bias')]


def _dense(source: str, target: str) -> list[Rule]:
    return [Rule((f'{source}/kernel',), f'{target}.weight', _linear), Rule((f'{source}/bias',), f'{target}.bias')]


RULES = [
    Rule(('cls',), 'cls_token'),  # [1, 1, D]
    Rule(('Transformer/posembed_input/pos_embedding',), 'pos_embed'),  # [1, 1 + N, D]
    Rule(('embedding/kernel',), 'patch_embed.projection.weight', _patches),
    Rule(('embedding/bias',), 'patch_embed.projection.bias'),
    *_norm(_BLOCK + 'LayerNorm_0', 'layers.{i}.ln1'),
    Rule(
        tuple(f'{_ATTENTION}{part}/kernel' for part in ('query', 'key', 'value')),
        'layers.{i}.attn.attn.in_proj_weight',
        _qkv_weight,
    ),
    Rule(
        tuple(f'{_ATTENTION}{part}/bias' for part in ('query', 'key', 'value')),
        'layers.{i}.attn.attn.in_proj_bias',
        _qkv_bias,
    ),
    Rule((_ATTENTION + 'out/kernel',), 'layers.{i}.attn.attn.out_proj.weight', _out_weight),
    Rule((_ATTENTION + 'out/bias',), 'layers.{i}.attn.attn.out_proj.bias'),
    *_norm(_BLOCK + 'LayerNorm_2', 'layers.{i}.ln2'),
    *_dense(_BLOCK + 'MlpBlock_3/Dense_0', 'layers.{i}.ffn.layers.0.0'),
    *_dense(_BLOCK + 'MlpBlock_3/Dense_1', 'layers.{i}.ffn.layers.1'),
    *_norm('Transformer/encoder_norm', 'ln1'),
]
# The classifier, and on ImageNet-21k files the layer before it.
DROPPED = ('head/*', 'pre_logits/*')


def to_mmseg(state: Mapping[str, Tensor]) -> Conversion:
    """Convert the tensors of an ``.npz`` file, of either naming.

    Args:
        state: key -> tensor.

    Raises:
        ValueError: lists missing and unknown keys.
    """
    if not any('MultiHeadDotProductAttention_0/' in key for key in state):
        return convert(state, RULES, DROPPED)
    pattern = re.compile('|'.join(f'(?<=/){re.escape(name)}' for name in _FLAX_NAMES))
    return convert({pattern.sub(lambda m: _FLAX_NAMES[m[0]], k): v for k, v in state.items()}, RULES, DROPPED)


def num_heads(state: Mapping[str, Tensor]) -> int | None:
    """Heads H, from the shape [D, H, d] of a query kernel."""
    return next((v.shape[1] for k, v in state.items() if k.endswith('/query/kernel') and v.ndim == 3), None)
