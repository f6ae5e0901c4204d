"""DINOv2 of Hugging Face transformers, with and without registers, and models with a head on it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..keymap import Conversion, Rule, convert
from . import _transformers as common
from . import timm
from ._plain import Affine, PlainBlock, PlainViT, affine
from ._reference import SourceSizes, depth

NAME = "transformers' DINOv2"
CONVERTER = 'vit2mmseg.py'
EPS = 1e-6

_BLOCK = 'encoder.layer.{i}.'
_ATTENTION = f'{_BLOCK}attention.attention.'
_QKV = (f'{_ATTENTION}query', f'{_ATTENTION}key', f'{_ATTENTION}value')
_PARTS = {'attention.output.dense': 'attn.attn.out_proj', 'norm1': 'ln1', 'norm2': 'ln2'}
_SWIGLU = {'mlp.weights_in': 'ffn.w12', 'mlp.weights_out': 'ffn.w3'}


def _rules(feed_forward: Mapping[str, str]) -> list[Rule]:
    layers = {
        'embeddings.patch_embeddings.projection': 'patch_embed.projection',
        'layernorm': 'ln1',
        **{_BLOCK + theirs: f'layers.{{i}}.{ours}' for theirs, ours in (_PARTS | dict(feed_forward)).items()},
    }
    return [
        Rule(('embeddings.cls_token',), 'cls_token'),
        Rule(('embeddings.position_embeddings',), 'pos_embed'),
        Rule(('embeddings.register_tokens',), 'register_tokens', optional=True),
        *common.layer_rules(layers, _QKV, f'{_BLOCK}layer_scale'),
        common.qkv_bias_rule(_QKV),
    ]


def detect(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the keys are those of a transformers DINOv2."""
    state = common.without_prefix(tensors)
    return 'encoder.layer.0.layer_scale1.lambda1' in state and 'embeddings.position_embeddings' in state


def to_mmseg(state: Mapping[str, Tensor]) -> Conversion:
    """Convert the encoder.

    Args:
        state: source key -> tensor.

    Raises:
        UserError: lists missing and unknown keys.
    """
    state = common.without_prefix(state)
    rules = _rules(_SWIGLU if 'encoder.layer.0.mlp.weights_in.weight' in state else timm.MLP)
    return timm.fill_qkv_bias(convert(state, rules, common.DROPPED))


def options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return how DINOv2 resizes its position embedding; it differs with and without registers."""
    has_registers = 'embeddings.register_tokens' in common.without_prefix(state)
    return dict(interpolate_antialias=True) if has_registers else dict(interpolate_offset=0.1)


num_heads = timm.num_heads


def source_sizes(state: Mapping[str, Tensor]) -> SourceSizes:
    """Read the sizes of the model from the tensors of the file."""
    state = common.without_prefix(state)
    up = next(name for name in ('fc1', 'weights_in') if f'encoder.layer.0.mlp.{name}.weight' in state)
    return common.source_sizes(
        state,
        'embeddings.patch_embeddings.projection',
        'encoder.layer.{}.norm1.weight',
        f'encoder.layer.0.mlp.{up}.weight',
    )


def reference_tokens(state: Mapping[str, Tensor], image: Tensor, num_heads: int) -> Tensor:
    """Run the encoder in plain torch, see :class:`mmseg_segmenter.checkpoints.formats.EncoderFormat`."""
    state = common.without_prefix(state)
    blocks = []
    for i in range(depth(state, 'encoder.layer.{}.norm1.weight')):
        name = f'encoder.layer.{i}'
        attention = f'{name}.attention.attention'
        if f'{name}.mlp.weights_in.weight' in state:
            weight, bias = affine(state, f'{name}.mlp.weights_in')
            assert bias is not None
            gate, up = (Affine(w, b) for w, b in zip(weight.chunk(2), bias.chunk(2), strict=True))
            down = affine(state, f'{name}.mlp.weights_out')
        else:
            gate, up, down = None, affine(state, f'{name}.mlp.fc1'), affine(state, f'{name}.mlp.fc2')
        blocks.append(
            PlainBlock(
                norm1=affine(state, f'{name}.norm1'),
                qkv=common.packed(state, (f'{attention}.query', f'{attention}.key', f'{attention}.value')),
                proj=affine(state, f'{name}.attention.output.dense'),
                norm2=affine(state, f'{name}.norm2'),
                up=up,
                down=down,
                gate=gate,
                ls1=state[f'{name}.layer_scale1.lambda1'].double(),
                ls2=state[f'{name}.layer_scale2.lambda1'].double(),
            )
        )
    tokens = ('embeddings.cls_token', 'embeddings.register_tokens')
    return PlainViT(
        patch=affine(state, 'embeddings.patch_embeddings.projection'),
        prefix=[state[key] for key in tokens if key in state],
        pos_embed=state['embeddings.position_embeddings'],
        blocks=blocks,
        norm=affine(state, 'layernorm'),
        eps=EPS,
    ).tokens(image, num_heads)
