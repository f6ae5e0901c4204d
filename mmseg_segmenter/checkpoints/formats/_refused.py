"""ViTs that ``SegmenterViT`` cannot be, recognised so that the error says so."""

from collections.abc import Mapping

from torch import Tensor

from ...errors import UserError

# Part of a key -> why the model does not fit.
_MARKS = {
    'relative_position_bias': 'BEiT adds a relative position bias to the attention, which SegmenterViT does not',
    'inner_attn_ln': 'EVA-02 has a norm inside the attention, which SegmenterViT does not have',
    'attn_pool.': 'SigLIP has no class token, which SegmenterViT needs',
    'norm_pre.': 'CLIP has another activation than the pretrained models of this converter',
    'vision_model.': 'CLIP and SigLIP are laid out in another way',
    'visual.': 'CLIP is laid out in another way, and has another activation',
}
_ADVICE = 'use a backbone that is made for it'


def refuse(tensors: Mapping[str, Tensor]) -> None:
    """Refuse the checkpoint of a ViT that is known not to fit.

    Raises:
        UserError: names the model and why it does not fit.
    """
    for mark, reason in _MARKS.items():
        if key := next((key for key in tensors if mark in key), None):
            raise UserError(f'{key}: {reason}; {_ADVICE}')
    if 'patch_embed.proj.weight' in tensors and 'blocks.0.norm1.weight' in tensors and 'cls_token' not in tensors:
        raise UserError(f'there is no class token (as in I-JEPA and SigLIP), which SegmenterViT needs; {_ADVICE}')
