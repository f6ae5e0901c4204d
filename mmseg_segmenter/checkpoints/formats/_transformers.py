"""What the formats of Hugging Face transformers share."""

from collections.abc import Mapping

from torch import Tensor

from ..keymap import Rule, cat
from ._plain import Affine, affine, cat_affine
from ._reference import SourceSizes, depth, grid_of

# The name of the encoder in a model with a head.
PREFIXES = ('vit.', 'dinov2.', 'dinov2_with_registers.', 'dinov3_vit.', 'backbone.', 'model.')
# Classifiers, poolers, the decoder of MAE, and tokens for masked image modelling.
DROPPED = ('classifier.*', 'pooler.*', 'decoder.*', 'embeddings.mask_token')


def without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the names that they have in a model without head.

    Other tensors keep their names, so that a conversion accounts for them.
    """
    prefix = next((p for p in PREFIXES if any(key.startswith(f'{p}embeddings.') for key in state)), '')
    return {key.removeprefix(prefix): tensor for key, tensor in state.items()}


def layer_rules(layers: Mapping[str, str], qkv: tuple[str, str, str], scales: str | None = None) -> list[Rule]:
    """Return the rules of layers with weight and bias, of the weights of attention, and of layer scales.

    Args:
        layers: name of each layer -> name in mmseg's layout, with ``{i}`` for the number of a block.
        qkv: names of the projections of queries, keys and values.
        scales: what the names of layer scales begin with.
    """
    rules = [
        Rule((f'{theirs}.{kind}',), f'{ours}.{kind}') for theirs, ours in layers.items() for kind in ('weight', 'bias')
    ]
    rules.append(Rule(tuple(f'{name}.weight' for name in qkv), 'layers.{i}.attn.attn.in_proj_weight', cat))
    if scales is not None:
        rules += [Rule((f'{scales}{n}.lambda1',), f'layers.{{i}}.ls{n}.weight') for n in (1, 2)]
    return rules


def qkv_bias_rule(qkv: tuple[str, str, str]) -> Rule:
    """Return the rule of the biases of queries, keys and values, which may be absent."""
    return Rule(tuple(f'{name}.bias' for name in qkv), 'layers.{i}.attn.attn.in_proj_bias', cat, optional=True)


def source_sizes(state: Mapping[str, Tensor], patch_key: str, norm_key: str, up_key: str) -> SourceSizes:
    """Read the sizes of a model from the tensors of the file.

    Args:
        state: source key -> tensor.
        patch_key: name of the patch embedding.
        norm_key: key of a tensor in each block, with ``{}`` for its number.
        up_key: key of the first feed-forward weight of block 0.
    """
    width, channels, _, P = state[f'{patch_key}.weight'].shape
    rows = state.get('embeddings.position_embeddings')
    return SourceSizes(
        grid=(3, 4) if rows is None else grid_of(rows.shape[1] - 1),
        patch_size=P,
        in_channels=channels,
        embed_dims=width,
        num_layers=depth(state, norm_key),
        feedforward_channels=len(state[up_key]),
        with_dist_token=False,
        qkv_bias=True,
    )


def packed(state: Mapping[str, Tensor], names: tuple[str, str, str]) -> Affine:
    """Read the projections of queries, keys and values as one; an absent bias is 0."""
    return cat_affine([affine(state, name) for name in names])
