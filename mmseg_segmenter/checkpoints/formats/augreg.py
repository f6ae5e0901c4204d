"""AugReg and original ViTs (google-research/vision_transformer): flat ``.npz`` files written by JAX/Flax.

The layout of each tensor is stated where it is converted. D: width, H: heads, d = D / H, P: side of a patch,
N: patches, B: images.
"""

import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..keymap import Conversion, Rule, cat, convert
from ._reference import SourceSizes, attend, depth, grid_of, num_unembedded

NAME = 'JAX'
CONVERTER = 'vitjax2mmseg.py'
EPS = 1e-6

_BLOCK = 'Transformer/encoderblock_{i}/'
_ATTENTION = _BLOCK + 'MultiHeadDotProductAttention_1/'
# Current Flax numbers the parts of a block separately by kind.
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
# The classifier and, in ImageNet-21k files, the layer before it.
DROPPED = ('head/*', 'pre_logits/*')


def detect(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the keys are those of a Flax model: only Flax joins the parts of a key by slashes."""
    return any('/' in key for key in tensors)


def to_mmseg(state: Mapping[str, Tensor]) -> Conversion:
    """Convert the tensors of an ``.npz`` file with the names of the released files or of current Flax.

    Args:
        state: source key -> tensor.

    Raises:
        UserError: lists missing and unknown keys.
    """
    if not any('MultiHeadDotProductAttention_0/' in key for key in state):
        return convert(state, RULES, DROPPED)
    pattern = re.compile('|'.join(f'(?<=/){re.escape(name)}' for name in _FLAX_NAMES))
    return convert({pattern.sub(lambda m: _FLAX_NAMES[m[0]], k): v for k, v in state.items()}, RULES, DROPPED)


def num_heads(state: Mapping[str, Tensor]) -> int | None:
    """Return the number of heads H, from the shape [D, H, d] of a query kernel."""
    return next((v.shape[1] for k, v in state.items() if k.endswith('/query/kernel') and v.ndim == 3), None)


def has_released_names(state: Mapping[str, Tensor]) -> bool:
    """Return whether the parts of a block are numbered as in the released files, not as by current Flax."""
    return 'Transformer/encoderblock_0/LayerNorm_2/scale' in state


def source_sizes(state: Mapping[str, Tensor]) -> SourceSizes:
    """Read the sizes of the model from the tensors of the file."""
    P, _, channels, width = state['embedding/kernel'].shape
    rows = state['Transformer/posembed_input/pos_embedding'].shape[1]
    mlp = 'MlpBlock_3' if has_released_names(state) else 'MlpBlock_0'
    return SourceSizes(
        grid=grid_of(rows - 1 + num_unembedded(rows, 1)),
        patch_size=P,
        in_channels=channels,
        embed_dims=width,
        num_layers=depth(state, 'Transformer/encoderblock_{}/LayerNorm_0/scale'),
        feedforward_channels=len(state[f'Transformer/encoderblock_0/{mlp}/Dense_0/bias']),
        with_dist_token=False,
        qkv_bias=True,
    )


def reference_tokens(state: Mapping[str, Tensor], image: Tensor, num_heads: int) -> Tensor:
    """Run the Flax ViT in plain torch up to the classifier, see :class:`mmseg_segmenter.checkpoints.formats.Format`.

    Args:
        state: arrays of the file.
        image: (B, channels, height, width) in float64, of the size that the position embedding is made for.
        num_heads: not used; the shapes of the kernels hold it.

    Returns:
        (B, 1 + N, D) tokens after the last LayerNorm, the class token first.
    """

    def w(key: str) -> Tensor:
        return state[key].double()

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w(f'{name}/scale'), w(f'{name}/bias'), EPS)

    def dense(x: Tensor, name: str) -> Tensor:
        return x @ w(f'{name}/kernel') + w(f'{name}/bias')

    attention, ln2, mlp = ('MultiHeadDotProductAttention_1', 'LayerNorm_2', 'MlpBlock_3')
    if not has_released_names(state):
        attention, ln2, mlp = ('MultiHeadDotProductAttention_0', 'LayerNorm_1', 'MlpBlock_0')
    patches = image.permute(0, 2, 3, 1)  # NHWC, as in JAX
    P = state['embedding/kernel'].shape[0]
    patches = patches.unflatten(2, (-1, P)).unflatten(1, (-1, P))  # (B, rows, P, columns, P, channels)
    x = torch.einsum('bipjqc,pqcd->bijd', patches, w('embedding/kernel')).flatten(1, 2) + w('embedding/bias')
    pos_embed = w('Transformer/posembed_input/pos_embedding')
    pos_embed = F.pad(pos_embed, (0, 0, num_unembedded(pos_embed.shape[1], 1), 0))  # 0 for a class token without row
    x = torch.cat((w('cls').expand(len(x), -1, -1), x), 1) + pos_embed  # (B, 1 + N, D)
    for i in range(depth(state, 'Transformer/encoderblock_{}/LayerNorm_0/scale')):
        block = f'Transformer/encoderblock_{i}'
        y = norm(x, f'{block}/LayerNorm_0')
        q, k, v = (
            torch.einsum('bnc,chd->bnhd', y, w(f'{block}/{attention}/{part}/kernel'))
            + w(f'{block}/{attention}/{part}/bias')
            for part in ('query', 'key', 'value')
        )
        out = torch.einsum('bnhd,hdc->bnc', attend(q, k, v), w(f'{block}/{attention}/out/kernel'))
        x = x + out + w(f'{block}/{attention}/out/bias')
        y = F.gelu(dense(norm(x, f'{block}/{ln2}'), f'{block}/{mlp}/Dense_0'))
        x = x + dense(y, f'{block}/{mlp}/Dense_1')
    return norm(x, 'Transformer/encoder_norm')
