"""timm and DeiT checkpoints. The encoder and the blocks of the official Segmenter have the same names."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..keymap import Conversion, Rule, convert, invert
from ._reference import SourceSizes, attend, depth, grid_of, num_unembedded

NAME = 'timm'
CONVERTER = 'timm2mmseg.py'
EPS = 1e-6

_PARTS = {'norm1': 'ln1', 'attn.qkv': 'attn.attn.in_proj', 'attn.proj': 'attn.attn.out_proj', 'norm2': 'ln2',
          'mlp.fc1': 'ffn.layers.0.0', 'mlp.fc2': 'ffn.layers.1'}  # fmt: skip


def _block_rules() -> list[Rule]:
    rules = []
    for theirs, ours in _PARTS.items():
        for kind in ('weight', 'bias'):
            # nn.MultiheadAttention has a parameter in_proj_weight, not a Linear
            target = f'{ours}_{kind}' if ours.endswith('in_proj') else f'{ours}.{kind}'
            # absent with timm's qkv_bias=False
            optional = theirs == 'attn.qkv' and kind == 'bias'
            rules.append(Rule((f'{theirs}.{kind}',), target, optional=optional))
    return rules


# Both layouts pack the rows of queries, keys and values in this order.
BLOCK_RULES = [rule.below('blocks.{i}.', 'layers.{i}.') for rule in _block_rules()]
RULES = [
    Rule(('cls_token',), 'cls_token'),
    Rule(('dist_token',), 'dist_token', optional=True),  # distilled DeiT
    Rule(('pos_embed',), 'pos_embed'),
    Rule(('patch_embed.proj.weight',), 'patch_embed.projection.weight'),
    Rule(('patch_embed.proj.bias',), 'patch_embed.projection.bias'),
    *BLOCK_RULES,
    Rule(('norm.weight',), 'ln1.weight'),
    Rule(('norm.bias',), 'ln1.bias'),
]
# Classifiers, and pre_logits of ImageNet-21k models.
CLASSIFIERS = ('head.', 'head_dist.', 'pre_logits.')
DROPPED = tuple(f'{name}*' for name in CLASSIFIERS)


def detect(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the keys are those of a timm ViT."""
    return all(any(key.startswith(prefix) for key in tensors) for prefix in ('patch_embed.proj.', 'blocks.'))


def to_mmseg(state: Mapping[str, Tensor]) -> Conversion:
    """Convert the state_dict of a timm ViT or of a DeiT with or without distillation token.

    Args:
        state: source key -> tensor.

    Raises:
        UserError: lists missing and unknown keys.
    """
    return fill_qkv_bias(convert(state, RULES, DROPPED))


def from_mmseg(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert an encoder to timm's layout, without classifier.

    Args:
        state: encoder in mmseg's layout.

    Raises:
        UserError: lists missing and unknown keys.
    """
    return invert(state, RULES)


def fill_qkv_bias(conversion: Conversion) -> Conversion:
    """Add zeros where the source has no bias of queries, keys and values (timm's ``qkv_bias=False``).

    ``SegmenterViT(qkv_bias=False)`` is another model: as in ``nn.MultiheadAttention``, it drops the bias of the
    output projection too. With zeros, the model with the default ``qkv_bias=True`` gives the same outputs.
    """
    state = conversion.state_dict
    for key in [key for key in state if key.endswith('in_proj_weight')]:
        bias = f'{key.removesuffix("weight")}bias'
        if bias not in state:
            state[bias] = state[key].new_zeros(len(state[key]))
            conversion.filled.append(bias)
    return conversion


def num_heads(state: Mapping[str, Tensor]) -> int | None:
    """Return None: the packed projection has the same shape whatever the number of heads."""
    return None


def source_sizes(state: Mapping[str, Tensor]) -> SourceSizes:
    """Read the sizes of the model from the tensors of the file."""
    width, channels, _, P = state['patch_embed.proj.weight'].shape
    rows, prefix = state['pos_embed'].shape[1], 2 if 'dist_token' in state else 1
    return SourceSizes(
        grid=grid_of(rows - prefix + num_unembedded(rows, prefix)),
        patch_size=P,
        in_channels=channels,
        embed_dims=width,
        num_layers=depth(state, 'blocks.{}.norm1.weight'),
        feedforward_channels=len(state['blocks.0.mlp.fc1.weight']),
        with_dist_token=prefix == 2,
        qkv_bias='blocks.0.attn.qkv.bias' in state,
    )


def reference_tokens(state: Mapping[str, Tensor], image: Tensor, num_heads: int) -> Tensor:
    """Run the encoder in plain torch, see :class:`mmseg_segmenter.checkpoints.formats.EncoderFormat`."""
    return PlainLayers(state, EPS).tokens(image, '', num_heads)


@dataclass(frozen=True)
class PlainLayers:
    """The layers of a ViT in plain torch and float64, by their names in timm and the official Segmenter.

    Attributes:
        weights: source key -> tensor.
        eps: of the LayerNorms.
    """

    weights: Mapping[str, Tensor]
    eps: float

    def __getitem__(self, key: str) -> Tensor:
        return self.weights[key].double()

    def linear(self, x: Tensor, name: str) -> Tensor:
        bias = self[f'{name}.bias'] if f'{name}.bias' in self.weights else None
        return F.linear(x, self[f'{name}.weight'], bias)

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self[f'{name}.weight'], self[f'{name}.bias'], self.eps)

    def blocks(self, x: Tensor, prefix: str, num_heads: int) -> Tensor:
        """Run (B, N, C) tokens through all blocks below ``prefix``."""
        for i in range(depth(self.weights, f'{prefix}blocks.{{}}.norm1.weight')):
            block = f'{prefix}blocks.{i}'
            qkv = self.linear(self.norm(x, f'{block}.norm1'), f'{block}.attn.qkv')
            q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).unbind(2)  # (B, N, 3C) -> 3 x (B, N, heads, C / heads)
            x = x + self.linear(attend(q, k, v).flatten(2), f'{block}.attn.proj')
            y = F.gelu(self.linear(self.norm(x, f'{block}.norm2'), f'{block}.mlp.fc1'))
            x = x + self.linear(y, f'{block}.mlp.fc2')
        return x

    def tokens(self, image: Tensor, prefix: str, num_heads: int) -> Tensor:
        """Run an encoder, and return its class token, distillation token if there is one, and patch tokens."""
        weight, bias = self[f'{prefix}patch_embed.proj.weight'], self[f'{prefix}patch_embed.proj.bias']
        x = F.conv2d(image, weight, bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)  # (B, N, C)
        extra = [self[f'{prefix}{name}'] for name in ('cls_token', 'dist_token') if f'{prefix}{name}' in self.weights]
        pos_embed = self[f'{prefix}pos_embed']
        # 0 for prefix tokens that have no row, as in timm's no_embed_class=True
        pos_embed = F.pad(pos_embed, (0, 0, num_unembedded(pos_embed.shape[1], len(extra)), 0))
        x = torch.cat([*(token.expand(len(x), -1, -1) for token in extra), x], 1) + pos_embed
        return self.norm(self.blocks(x, prefix, num_heads), f'{prefix}norm')
