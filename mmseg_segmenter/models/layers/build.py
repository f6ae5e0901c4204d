"""Build and initialise transformer blocks."""

from typing import Any

from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks.scale import LayerScale
from torch import nn

from ...errors import UserError
from .attention import SelfAttention
from .block import TransformerBlock
from .feed_forward import FeedForward, SwiGLU
from .packed_attention import PackedSelfAttention


def transformer_block(
    embed_dims: int,
    num_heads: int,
    feedforward_channels: int,
    drop_rate: float = 0.0,
    attn_drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    num_fcs: int = 2,
    qkv_bias: bool = True,
    act_cfg: dict[str, Any] | None = None,
    norm_cfg: dict[str, Any] | None = None,
    with_cp: bool = False,
    ffn: str = 'mlp',
    layer_scale: float | None = None,
) -> TransformerBlock:
    """Build the block of a ViT.

    Args:
        embed_dims: width C of the tokens.
        num_heads: number of attention heads.
        feedforward_channels: hidden width of the feed-forward network.
        drop_rate: dropout after each linear layer of the branches.
        attn_drop_rate: dropout on the attention weights.
        drop_path_rate: probability of dropping a branch for an image.
        num_fcs: number of linear layers in the feed-forward network.
        qkv_bias: add biases to the attention, the output projection included.
        act_cfg: activation, default exact (erf) GELU.
        norm_cfg: norm, default LayerNorm with eps 1e-5.
        with_cp: recompute activations in the backward pass to save memory.
        ffn: ``'mlp'`` or ``'swiglu'``. SwiGLU has no ``num_fcs`` and ``act_cfg``.
        layer_scale: initial value of a learned factor per channel at the end
            of each branch, default none.

    Raises:
        UserError: ``ffn`` is not known.
    """
    norm_cfg = norm_cfg or dict(type='LN')
    if ffn not in ('mlp', 'swiglu'):
        raise UserError(f"ffn={ffn!r}; expected 'mlp' or 'swiglu'")
    if ffn == 'mlp':
        feed_forward: nn.Module = FeedForward(embed_dims, feedforward_channels, num_fcs, drop_rate, act_cfg)
    else:
        feed_forward = SwiGLU(embed_dims, feedforward_channels, drop_rate)
    return TransformerBlock(
        ln1=build_norm_layer(norm_cfg, embed_dims)[1],
        attn=SelfAttention(embed_dims, num_heads, attn_drop_rate, drop_rate, qkv_bias),
        ln2=build_norm_layer(norm_cfg, embed_dims)[1],
        ffn=feed_forward,
        ls1=LayerScale(embed_dims, scale=layer_scale) if layer_scale is not None else None,
        ls2=LayerScale(embed_dims, scale=layer_scale) if layer_scale is not None else None,
        drop_path_rate=drop_path_rate,
        with_cp=with_cp,
    )


def transformer_blocks(num_layers: int, drop_path_rate: float, **kwargs: Any) -> nn.ModuleList:
    """Build a stack of blocks with linearly increasing stochastic depth.

    Args:
        num_layers: number of blocks.
        drop_path_rate: stochastic depth of the last block.
        kwargs: other arguments of :func:`transformer_block`.
    """
    return nn.ModuleList(
        transformer_block(drop_path_rate=rate, **kwargs) for rate in drop_path_rates(drop_path_rate, num_layers)
    )


def drop_path_rates(drop_path_rate: float, num_layers: int) -> list[float]:
    """Return stochastic depth rates that increase linearly from 0 to ``drop_path_rate``."""
    return [drop_path_rate * i / max(num_layers - 1, 1) for i in range(num_layers)]


def init_transformer_weights(module: nn.Module, std: float = 0.02) -> None:
    """Initialise a module as the official code does; pass this to ``nn.Module.apply``.

    Linear weights come from a normal distribution of standard deviation
    ``std``, truncated at -2 and 2. Biases are 0. LayerNorm has weight 1 and
    bias 0. Convolutions keep torch's default. Source: ``segm/model/utils.py``,
    ``init_weights``.
    """
    if isinstance(module, PackedSelfAttention):
        nn.init.trunc_normal_(module.in_proj_weight, std=std)
        if module.in_proj_bias is not None:
            nn.init.zeros_(module.in_proj_bias)
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
        nn.init.ones_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
