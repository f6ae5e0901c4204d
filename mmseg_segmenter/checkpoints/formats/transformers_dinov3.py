"""DINOv3 of Hugging Face transformers (``DINOv3ViTModel``), in the layouts of version 4 and 5."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..keymap import Conversion, Rule, cat_without_keys, convert
from . import _transformers as common
from . import dinov3, timm, timm_dinov3
from ._plain import PlainBlock, PlainViT, affine
from ._reference import SourceSizes, depth

NAME = "transformers' DINOv3"
CONVERTER = 'vit2mmseg.py'
EPS = dinov3.EPS

_BLOCK = 'layer.{i}.'
_QKV = (f'{_BLOCK}attention.q_proj', f'{_BLOCK}attention.k_proj', f'{_BLOCK}attention.v_proj')
_PARTS = {'attention.o_proj': 'attn.attn.out_proj', 'norm1': 'ln1', 'norm2': 'ln2'}
_MLP = {'mlp.up_proj': 'ffn.layers.0.0', 'mlp.down_proj': 'ffn.layers.1'}


def rules(swiglu: bool) -> list[Rule]:
    """Return the rules of all tensors, as version 4 names them."""
    parts = _PARTS if swiglu else _PARTS | _MLP
    layers = {
        'embeddings.patch_embeddings': 'patch_embed.projection',
        'norm': 'ln1',
        **{_BLOCK + theirs: f'layers.{{i}}.{ours}' for theirs, ours in parts.items()},
    }
    all_rules = [
        Rule(('embeddings.cls_token',), 'cls_token'),
        Rule(('embeddings.register_tokens',), 'register_tokens'),
        *common.layer_rules(layers, _QKV, f'{_BLOCK}layer_scale'),
        Rule(
            (f'{_QKV[0]}.bias', f'{_QKV[2]}.bias'), 'layers.{i}.attn.attn.in_proj_bias', cat_without_keys, optional=True
        ),
    ]
    if swiglu:
        all_rules += timm.swiglu_rules(*(f'{_BLOCK}mlp.{name}_proj' for name in ('gate', 'up', 'down')))
    return all_rules


def detect(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the keys are those of a transformers DINOv3."""
    return 'layer.0.layer_scale1.lambda1' in _flat(tensors)


def to_mmseg(state: Mapping[str, Tensor]) -> Conversion:
    """Convert the encoder, and add the periods of RoPE.

    Args:
        state: source key -> tensor.

    Raises:
        UserError: lists missing and unknown keys.
    """
    state = _flat(state)
    swiglu = 'layer.0.mlp.gate_proj.weight' in state
    conversion = timm.fill_qkv_bias(convert(state, rules(swiglu), common.DROPPED))
    conversion.state_dict['rope_embed.periods'] = timm_dinov3.periods(64)
    return conversion


def options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """See :func:`.dinov3.options`."""
    return dinov3.options(state)


num_heads = timm.num_heads


def source_sizes(state: Mapping[str, Tensor]) -> SourceSizes:
    """Read the sizes of the model from the tensors of the file."""
    return common.source_sizes(
        _flat(state), 'embeddings.patch_embeddings', 'layer.{}.norm1.weight', 'layer.0.mlp.up_proj.weight'
    )


def reference_tokens(state: Mapping[str, Tensor], image: Tensor, num_heads: int) -> Tensor:
    """Run the encoder in plain torch, see :class:`mmseg_segmenter.checkpoints.formats.EncoderFormat`."""
    return plain_vit(_flat(state), num_heads, EPS).tokens(image, num_heads)


def plain_vit(state: Mapping[str, Tensor], num_heads: int, eps: float) -> PlainViT:
    """Read the plain model from the names of version 4."""
    blocks = []
    for i in range(depth(state, 'layer.{}.norm1.weight')):
        name = f'layer.{i}'
        gate = f'{name}.mlp.gate_proj'
        blocks.append(
            PlainBlock(
                norm1=affine(state, f'{name}.norm1'),
                qkv=common.packed(
                    state, (f'{name}.attention.q_proj', f'{name}.attention.k_proj', f'{name}.attention.v_proj')
                ),
                proj=affine(state, f'{name}.attention.o_proj'),
                norm2=affine(state, f'{name}.norm2'),
                up=affine(state, f'{name}.mlp.up_proj'),
                down=affine(state, f'{name}.mlp.down_proj'),
                gate=affine(state, gate) if f'{gate}.weight' in state else None,
                ls1=state[f'{name}.layer_scale1.lambda1'].double(),
                ls2=state[f'{name}.layer_scale2.lambda1'].double(),
            )
        )
    return PlainViT(
        patch=affine(state, 'embeddings.patch_embeddings'),
        prefix=[state['embeddings.cls_token'], state['embeddings.register_tokens']],
        pos_embed=None,
        blocks=blocks,
        norm=affine(state, 'norm'),
        eps=eps,
        periods=timm_dinov3.periods(blocks[0].proj.weight.shape[0] // num_heads),
    )


def _flat(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors as version 4 names them; version 5 has the blocks below ``model.``, also in a prefix."""
    return {key.removeprefix('model.'): tensor for key, tensor in common.without_prefix(state).items()}
