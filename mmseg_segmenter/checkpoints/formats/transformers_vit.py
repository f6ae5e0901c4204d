"""ViT and MAE of Hugging Face transformers (``ViTModel``, ``ViTMAEModel`` and models with a head on them)."""

from collections.abc import Mapping

from torch import Tensor

from ..keymap import Conversion, Rule, convert
from . import _transformers as common
from . import timm
from ._plain import PlainBlock, PlainViT, affine
from ._reference import SourceSizes, depth

NAME = "transformers' ViT"
CONVERTER = 'vit2mmseg.py'
EPS = 1e-12

_BLOCK = 'encoder.layer.{i}.'
_ATTENTION = f'{_BLOCK}attention.attention.'
_QKV = (f'{_ATTENTION}query', f'{_ATTENTION}key', f'{_ATTENTION}value')
_PARTS = {
    'attention.output.dense': 'attn.attn.out_proj',
    'layernorm_before': 'ln1',
    'layernorm_after': 'ln2',
    'intermediate.dense': 'ffn.layers.0.0',
    'output.dense': 'ffn.layers.1',
}
_LAYERS = {
    'embeddings.patch_embeddings.projection': 'patch_embed.projection',
    'layernorm': 'ln1',
    **{_BLOCK + theirs: f'layers.{{i}}.{ours}' for theirs, ours in _PARTS.items()},
}
RULES = [
    Rule(('embeddings.cls_token',), 'cls_token'),
    Rule(('embeddings.position_embeddings',), 'pos_embed'),
    *common.layer_rules(_LAYERS, _QKV),
    common.qkv_bias_rule(_QKV),
]


def detect(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the keys are those of a transformers ViT."""
    state = common.without_prefix(tensors)
    return 'encoder.layer.0.layernorm_before.weight' in state and not any('relative_position' in key for key in state)


def to_mmseg(state: Mapping[str, Tensor]) -> Conversion:
    """Convert the encoder.

    Args:
        state: source key -> tensor.

    Raises:
        UserError: lists missing and unknown keys.
    """
    return timm.fill_qkv_bias(convert(common.without_prefix(state), RULES, common.DROPPED))


num_heads = timm.num_heads


def source_sizes(state: Mapping[str, Tensor]) -> SourceSizes:
    """Read the sizes of the model from the tensors of the file."""
    return common.source_sizes(
        common.without_prefix(state),
        'embeddings.patch_embeddings.projection',
        'encoder.layer.{}.layernorm_before.weight',
        'encoder.layer.0.intermediate.dense.weight',
    )


def reference_tokens(state: Mapping[str, Tensor], image: Tensor, num_heads: int) -> Tensor:
    """Run the encoder in plain torch, see :class:`mmseg_segmenter.checkpoints.formats.EncoderFormat`."""
    state = common.without_prefix(state)
    blocks = []
    for i in range(depth(state, 'encoder.layer.{}.layernorm_before.weight')):
        name = f'encoder.layer.{i}'
        attention = f'{name}.attention.attention'
        blocks.append(
            PlainBlock(
                norm1=affine(state, f'{name}.layernorm_before'),
                qkv=common.packed(state, (f'{attention}.query', f'{attention}.key', f'{attention}.value')),
                proj=affine(state, f'{name}.attention.output.dense'),
                norm2=affine(state, f'{name}.layernorm_after'),
                up=affine(state, f'{name}.intermediate.dense'),
                down=affine(state, f'{name}.output.dense'),
            )
        )
    return PlainViT(
        patch=affine(state, 'embeddings.patch_embeddings.projection'),
        prefix=[state['embeddings.cls_token']],
        pos_embed=state['embeddings.position_embeddings'],
        blocks=blocks,
        norm=affine(state, 'layernorm'),
        eps=EPS,
    ).tokens(image, num_heads)
