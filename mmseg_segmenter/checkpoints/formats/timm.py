"""timm and DeiT checkpoints; also the encoder of the official Segmenter."""

from collections.abc import Mapping

from torch import Tensor

from ..keymap import Conversion, Rule, convert, invert

_PARTS = {'norm1': 'ln1', 'attn.qkv': 'attn.attn.in_proj', 'attn.proj': 'attn.attn.out_proj', 'norm2': 'ln2',
          'mlp.fc1': 'ffn.layers.0.0', 'mlp.fc2': 'ffn.layers.1'}  # fmt: skip


def _block_rules() -> list[Rule]:
    rules = []
    for theirs, ours in _PARTS.items():
        for kind in ('weight', 'bias'):
            # torch's packed projection is a parameter of its own, in_proj_weight, not a Linear
            target = f'{ours}_{kind}' if ours.endswith('in_proj') else f'{ours}.{kind}'
            # timm's qkv_bias=False
            optional = theirs == 'attn.qkv' and kind == 'bias'
            rules.append(Rule((f'{theirs}.{kind}',), target, optional=optional))
    return rules


# Blocks in timm's names; the packed qkv rows are in the same order, q then k then v.
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
# Classifiers: head, head_dist, and pre_logits of ImageNet-21k models.
DROPPED = ('head.*', 'head_dist.*', 'pre_logits.*')


def to_mmseg(state: Mapping[str, Tensor]) -> Conversion:
    """Convert the state_dict of a timm ViT or a DeiT, distilled or not.

    Raises:
        ValueError: lists missing and unknown keys.
    """
    return convert(state, RULES, DROPPED)


def from_mmseg(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse, without a classifier.

    Raises:
        ValueError: lists missing and unknown keys.
    """
    return invert(state, RULES)
