"""EoMT of Hugging Face transformers, on DINOv2 and on DINOv3, under the names of the authors' code."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..keymap import Conversion
from . import official_eomt

NAME = "transformers' EoMT"
CONVERTER = official_eomt.CONVERTER

# In this order; the encoder keeps its prefix until the end.
_RENAMED = (
    (r'^query\.', 'q.'),
    (r'^class_predictor\.', 'class_head.'),
    (r'^mask_head\.fc1\.', 'mask_head.0.'),
    (r'^mask_head\.fc2\.', 'mask_head.2.'),
    (r'^mask_head\.fc3\.', 'mask_head.4.'),
    (r'^upscale_block\.block\.(\d+)\.layernorm2d\.', r'upscale.\1.norm.'),
    (r'^upscale_block\.block\.', 'upscale.'),
    (r'^layernorm\.', 'encoder.backbone.norm.'),
    (r'^layers\.', 'encoder.backbone.blocks.'),
)
_DINOV3 = ((r'^embeddings\.', 'encoder.backbone.patch_embed.'),)
_DINOV2 = (
    (r'^embeddings\.register_tokens$', 'encoder.backbone.reg_token'),
    (r'^embeddings\.position_embeddings\.weight$', 'encoder.backbone.pos_embed'),
    (r'^embeddings\.patch_embeddings\.projection\.', 'encoder.backbone.patch_embed.proj.'),
    (r'^embeddings\.', 'encoder.backbone.'),
    (r'\.attention\.out_proj\.', '.attn.proj.'),
    (r'\.layer_scale(\d)\.lambda1$', r'.ls\1.gamma'),
)
_TO_TRANSFORMERS = (
    (r'^q\.', 'query.'),
    (r'^class_head\.', 'class_predictor.'),
    (r'^mask_head\.0\.', 'mask_head.fc1.'),
    (r'^mask_head\.2\.', 'mask_head.fc2.'),
    (r'^mask_head\.4\.', 'mask_head.fc3.'),
    (r'^upscale\.(\d+)\.norm\.', r'upscale_block.block.\1.layernorm2d.'),
    (r'^upscale\.', 'upscale_block.block.'),
    (r'^encoder\.backbone\.norm\.', 'layernorm.'),
    (r'^encoder\.backbone\.blocks\.', 'layers.'),
    (r'^encoder\.backbone\.reg_token$', 'embeddings.register_tokens'),
    (r'^encoder\.backbone\.pos_embed$', 'embeddings.position_embeddings.weight'),
    (r'^encoder\.backbone\.patch_embed\.proj\.', 'embeddings.patch_embeddings.projection.'),
    (r'^encoder\.backbone\.', 'embeddings.'),
    (r'\.attn\.proj\.', '.attention.out_proj.'),
    (r'\.ls(\d)\.gamma$', r'.layer_scale\1.lambda1'),
)
_QUERIES = re.compile(r'(encoder\.backbone\.blocks\.\d+)\.attention\.q_proj\.(weight|bias)')


def detect(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the keys are those of an EoMT of transformers."""
    return 'query.weight' in tensors and 'class_predictor.weight' in tensors


def to_mmseg(state: Mapping[str, Tensor], num_heads: int | None = None) -> Conversion:
    """Convert the ``state_dict`` of ``EomtForUniversalSegmentation`` or ``EomtDinov3ForUniversalSegmentation``.

    Args:
        state: source key -> tensor.
        num_heads: as :func:`.official_eomt.to_mmseg`.

    Raises:
        UserError: lists missing and unknown keys, as the authors' code names them.
    """
    return official_eomt.to_mmseg(as_official(state), num_heads)


def as_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the names of the authors' code."""
    dinov2 = 'embeddings.position_embeddings.weight' in state
    renamed = {}
    for key, tensor in state.items():
        for pattern, replacement in _RENAMED + (_DINOV2 if dinov2 else _DINOV3):
            key = re.sub(pattern, replacement, key)
        renamed[key] = tensor[None] if key == 'encoder.backbone.pos_embed' else tensor
    return _packed(renamed) if dinov2 else renamed


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of an EoMT on DINOv2 as ``EomtForUniversalSegmentation`` names them.

    Args:
        state: as :func:`as_official` returns them.
    """
    renamed = {}
    for key, tensor in state.items():
        for pattern, replacement in _TO_TRANSFORMERS:
            key = re.sub(pattern, replacement, key)
        if '.attn.qkv.' in key:
            for name, part in zip('qkv', tensor.chunk(3), strict=True):
                renamed[key.replace('.attn.qkv.', f'.attention.{name}_proj.')] = part
        else:
            renamed[key] = tensor[0] if key == 'embeddings.position_embeddings.weight' else tensor
    return renamed


def _packed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pack queries, keys and values, as timm does."""
    for match in filter(None, map(_QUERIES.fullmatch, list(state))):
        block, kind = match.groups()
        keys = [f'{block}.attention.{name}_proj.{kind}' for name in 'qkv']
        if all(key in state for key in keys):
            state[f'{block}.attn.qkv.{kind}'] = torch.cat([state.pop(key) for key in keys])
    return state
