"""timm and DeiT checkpoints. The encoder and the blocks of the official Segmenter have the same names.

So have those of DINO, and the encoders of MAE and DeiT-III. timm's DINOv2 and DeiT-III have layer scales; its DINOv2
has registers, and SwiGLU in the largest model, whose gate and value are packed into ``mlp.fc1``.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..keymap import Conversion, Rule, cat, convert, invert
from ._plain import Affine, PlainBlock, PlainViT, affine, optional
from ._reference import SourceSizes, depth, grid_of, num_unembedded

NAME = 'timm'
CONVERTER = 'vit2mmseg.py'
EPS = 1e-6

_PARTS = {'norm1': 'ln1', 'attn.qkv': 'attn.attn.in_proj', 'attn.proj': 'attn.attn.out_proj', 'norm2': 'ln2'}
MLP = {'mlp.fc1': 'ffn.layers.0.0', 'mlp.fc2': 'ffn.layers.1'}
_SWIGLU = {'mlp.fc1': 'ffn.w12', 'mlp.fc2': 'ffn.w3'}


def block_rules(feed_forward: Mapping[str, str]) -> list[Rule]:
    """Return the rules of the blocks.

    Args:
        feed_forward: name of each of its layers -> name in mmseg's layout.
    """
    rules = []
    for theirs, ours in (_PARTS | dict(feed_forward)).items():
        for kind in ('weight', 'bias'):
            # nn.MultiheadAttention has a parameter in_proj_weight, not a Linear
            target = f'{ours}_{kind}' if ours.endswith('in_proj') else f'{ours}.{kind}'
            # absent with timm's qkv_bias=False
            optional = theirs == 'attn.qkv' and kind == 'bias'
            rules.append(Rule((f'{theirs}.{kind}',), target, optional=optional))
    rules += [Rule((f'{scale}.gamma',), f'{scale}.weight', optional=True) for scale in ('ls1', 'ls2')]
    # Both layouts pack the rows of queries, keys and values in this order.
    return [rule.below('blocks.{i}.', 'layers.{i}.') for rule in rules]


def swiglu_rules(gate: str, value: str, last: str) -> list[Rule]:
    """Return the rules of a SwiGLU whose gate and value are separate layers.

    Args:
        gate: name of the gate, with ``{i}`` for the number of the block.
        value: name of the value, likewise.
        last: name of the last layer, likewise.
    """
    return [
        rule
        for kind in ('weight', 'bias')
        for rule in (
            Rule((f'{gate}.{kind}', f'{value}.{kind}'), f'layers.{{i}}.ffn.w12.{kind}', cat),
            Rule((f'{last}.{kind}',), f'layers.{{i}}.ffn.w3.{kind}'),
        )
    ]


BLOCK_RULES = block_rules(MLP)
EMBEDDING_RULES = [
    Rule(('cls_token',), 'cls_token'),
    Rule(('dist_token',), 'dist_token', optional=True),  # distilled DeiT
    Rule(('patch_embed.proj.weight',), 'patch_embed.projection.weight'),
    Rule(('patch_embed.proj.bias',), 'patch_embed.projection.bias'),
    Rule(('norm.weight',), 'ln1.weight'),
    Rule(('norm.bias',), 'ln1.bias'),
]
_REGISTERS = Rule(('reg_token',), 'register_tokens', optional=True)
RULES = [*EMBEDDING_RULES, Rule(('pos_embed',), 'pos_embed'), *BLOCK_RULES, _REGISTERS]
# Classifiers, and pre_logits of ImageNet-21k models.
CLASSIFIERS = ('head.', 'head_dist.', 'pre_logits.')
DROPPED = tuple(f'{name}*' for name in CLASSIFIERS)


def rules(packed_swiglu: bool) -> list[Rule]:
    """Return the rules of all tensors.

    Args:
        packed_swiglu: as :func:`has_packed_swiglu`.
    """
    return [rule for rule in RULES if rule not in BLOCK_RULES] + block_rules(_SWIGLU) if packed_swiglu else RULES


def detect(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the keys are those of a timm ViT."""
    return all(any(key.startswith(prefix) for key in tensors) for prefix in ('patch_embed.proj.', 'blocks.'))


def to_mmseg(state: Mapping[str, Tensor]) -> Conversion:
    """Convert the state_dict of a timm ViT, with the options of its DINOv2 and DeiT-III, or of a distilled DeiT.

    Args:
        state: source key -> tensor.

    Raises:
        UserError: lists missing and unknown keys.
    """
    return fill_qkv_bias(convert(state, rules(has_packed_swiglu(state)), DROPPED))


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


def has_packed_swiglu(state: Mapping[str, Tensor]) -> bool:
    """Return whether ``mlp.fc1`` makes the gate and the value of SwiGLU."""
    up, down = (state.get(f'blocks.0.mlp.{name}.weight') for name in ('fc1', 'fc2'))
    return up is not None and down is not None and up.ndim == down.ndim == 2 and len(up) == 2 * down.shape[1]


def has_extras(state: Mapping[str, Tensor]) -> bool:
    """Return whether there are tensors that timm's plain ``VisionTransformer`` has by option only."""
    rows = state['pos_embed'].shape[1]
    prefix = 2 if 'dist_token' in state else 1
    return 'reg_token' in state or 'blocks.0.ls1.gamma' in state or num_unembedded(rows, prefix) > 0


def options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of ``SegmenterViT`` that the tensors in mmseg's layout do not tell.

    Position embeddings are resized as DINOv2 resizes its own, not as timm does.
    """
    if 'reg_token' in state:
        return dict(interpolate_antialias=True)
    rows, has_scales = state['pos_embed'].shape[1], 'blocks.0.ls1.gamma' in state
    # DeiT-III has layer scales too, but no row for the class token.
    return dict(interpolate_offset=0.1) if has_scales and not num_unembedded(rows, 1) else {}


def num_heads(state: Mapping[str, Tensor]) -> int | None:
    """Return None: the packed projection has the same shape whatever the number of heads."""
    return None


def source_sizes(state: Mapping[str, Tensor]) -> SourceSizes:
    """Read the sizes of the model from the tensors of the file."""
    width, channels, _, P = state['patch_embed.proj.weight'].shape
    grid = (3, 4)  # of a model without position embedding, which takes any
    prefix = 2 if 'dist_token' in state else 1
    if 'pos_embed' in state:
        rows = state['pos_embed'].shape[1]
        grid = grid_of(rows - prefix + num_unembedded(rows, prefix))
    return SourceSizes(
        grid=grid,
        patch_size=P,
        in_channels=channels,
        embed_dims=width,
        num_layers=depth(state, 'blocks.{}.norm1.weight'),
        feedforward_channels=len(state['blocks.0.mlp.fc1.weight']) if 'blocks.0.mlp.fc1.weight' in state else 0,
        with_dist_token=prefix == 2,
        qkv_bias='blocks.0.attn.qkv.bias' in state,
    )


def reference_tokens(state: Mapping[str, Tensor], image: Tensor, num_heads: int) -> Tensor:
    """Run the encoder in plain torch, see :class:`mmseg_segmenter.checkpoints.formats.EncoderFormat`."""
    return plain_vit(state, EPS, registers='reg_token').tokens(image, num_heads)


def plain_vit(state: Mapping[str, Tensor], eps: float, registers: str, prefix: str = '') -> PlainViT:
    """Read the plain model from the names of timm and of the authors of ViTs.

    Args:
        state: source key -> tensor.
        eps: of the norms.
        registers: key of the registers.
        prefix: of all keys.
    """
    tokens = [f'{prefix}{name}' for name in ('cls_token', 'dist_token', registers)]
    return PlainViT(
        patch=affine(state, f'{prefix}patch_embed.proj'),
        prefix=[state[key] for key in tokens if key in state],
        pos_embed=optional(state, f'{prefix}pos_embed'),
        blocks=plain_blocks(state, prefix),
        norm=affine(state, f'{prefix}norm'),
        eps=eps,
        periods=optional(state, f'{prefix}rope_embed.periods'),
    )


def plain_blocks(state: Mapping[str, Tensor], prefix: str = '') -> list[PlainBlock]:
    """Read the plain blocks, whichever feed-forward network they have."""
    blocks = []
    for i in range(depth(state, f'{prefix}blocks.{{}}.norm1.weight')):
        name = f'{prefix}blocks.{i}'
        qkv, mask = affine(state, f'{name}.attn.qkv'), state.get(f'{name}.attn.qkv.bias_mask')
        if mask is not None and qkv.bias is not None:  # DINOv3; what it masks may be NaN
            qkv = Affine(qkv.weight, torch.where(mask.bool(), qkv.bias, 0))
        gate, up, down = _plain_feed_forward(state, f'{name}.mlp')
        blocks.append(
            PlainBlock(
                norm1=affine(state, f'{name}.norm1'),
                qkv=qkv,
                proj=affine(state, f'{name}.attn.proj'),
                norm2=affine(state, f'{name}.norm2'),
                up=up,
                down=down,
                gate=gate,
                ls1=optional(state, f'{name}.ls1.gamma'),
                ls2=optional(state, f'{name}.ls2.gamma'),
            )
        )
    return blocks


def _plain_feed_forward(state: Mapping[str, Tensor], name: str) -> tuple[Affine | None, Affine, Affine]:
    """Return gate, first and last layer of a feed-forward network."""
    if f'{name}.w1.weight' in state:  # DINOv3
        return affine(state, f'{name}.w1'), affine(state, f'{name}.w2'), affine(state, f'{name}.w3')
    if f'{name}.w12.weight' in state:  # DINOv2
        packed, down = affine(state, f'{name}.w12'), affine(state, f'{name}.w3')
    else:
        packed, down = affine(state, f'{name}.fc1'), affine(state, f'{name}.fc2')
        if len(packed.weight) == down.weight.shape[1]:
            return None, packed, down
    assert packed.bias is not None
    (gate, up), (gate_bias, up_bias) = packed.weight.chunk(2), packed.bias.chunk(2)
    return Affine(gate, gate_bias), Affine(up, up_bias), down
