"""ViTs that ``SegmenterViT`` cannot be, recognised so that the error says so."""

from collections.abc import Mapping

from torch import Tensor

from ...errors import UserError

# Part of a key -> the model, and what it has that SegmenterViT has not.
_MARKS = {
    'relative_position_bias': 'BEiT adds a relative position bias to the attention',
    'inner_attn_ln': 'EVA-02 has a norm inside of the attention',
    'attn_pool.': 'SigLIP has no class token',
    'norm_pre.': 'CLIP has a norm in front of the blocks and another activation',
    'vision_model.': 'CLIP and SigLIP have another attention layout, and a norm or a pooling of their own',
    'visual.': 'CLIP has another layout, a norm in front of the blocks and another activation',
}
_ADVICE = 'use a backbone that is made for it'


def refuse(tensors: Mapping[str, Tensor]) -> None:
    """Refuse the checkpoint of a ViT that is known not to fit.

    Raises:
        UserError: names the model, what SegmenterViT has not, and what can be used instead.
    """
    for mark, reason in _MARKS.items():
        if key := next((key for key in tensors if mark in key), None):
            raise UserError(f'{key}: {reason}, which SegmenterViT has not; {_ADVICE}')
    if 'patch_embed.proj.weight' in tensors and 'blocks.0.norm1.weight' in tensors and 'cls_token' not in tensors:
        raise UserError(f'there is no class token (as in I-JEPA and SigLIP), which SegmenterViT needs; {_ADVICE}')
