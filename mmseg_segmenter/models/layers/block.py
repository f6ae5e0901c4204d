"""Pre-norm transformer block, used by the encoder and the mask decoder."""

import itertools
from typing import Any

import torch
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...errors import UserError
from .attention import PackedSelfAttention, SelfAttention
from .cpu_linear import Linear


class FeedForward(nn.Module):
    """``num_fcs`` linear layers with an activation between them.

    Nested as mmcv's ``FFN`` (``layers.0.0``, ``layers.1``) without its
    residual connection, which belongs to the block.
    """

    def __init__(
        self,
        embed_dims: int,
        feedforward_channels: int,
        num_fcs: int = 2,
        drop_rate: float = 0.0,
        act_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if num_fcs < 2:
            raise UserError(f'num_fcs={num_fcs}; a feed-forward network needs at least 2')
        widths = [embed_dims, *[feedforward_channels] * (num_fcs - 1)]
        hidden = [
            nn.Sequential(
                Linear(c_in, c_out), build_activation_layer(act_cfg or dict(type='GELU')), nn.Dropout(drop_rate)
            )
            for c_in, c_out in itertools.pairwise(widths)
        ]
        self.layers = nn.Sequential(*hidden, Linear(feedforward_channels, embed_dims), nn.Dropout(drop_rate))

    def forward(self, x_BNC: Tensor) -> Tensor:
        return self.layers(x_BNC)


class TransformerBlock(nn.Module):
    """``x + attn(ln1(x))``, then ``x + ffn(ln2(x))``.

    Stochastic depth acts on both branches, as in the official code; mmseg
    1.2.2 applies it to the second one only.

    Args:
        embed_dims: width C of the tokens.
        num_heads: attention heads.
        feedforward_channels: hidden width of the feed-forward network.
        drop_rate: dropout behind each linear layer of the branches.
        attn_drop_rate: dropout on the attention weights.
        drop_path_rate: probability of dropping a branch for a sample.
        num_fcs: linear layers in the feed-forward network.
        qkv_bias: biases in the attention.
        act_cfg: activation, default exact (erf) GELU.
        norm_cfg: normalisation, default LayerNorm with torch's eps 1e-5.
        with_cp: recompute activations in the backward pass to save memory.
    """

    def __init__(
        self,
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
    ) -> None:
        super().__init__()
        norm_cfg = norm_cfg or dict(type='LN')
        self.with_cp = with_cp
        self.ln1 = build_norm_layer(norm_cfg, embed_dims)[1]
        self.attn = SelfAttention(embed_dims, num_heads, attn_drop_rate, drop_rate, qkv_bias)
        self.ln2 = build_norm_layer(norm_cfg, embed_dims)[1]
        self.ffn = FeedForward(embed_dims, feedforward_channels, num_fcs, drop_rate, act_cfg)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()

    def forward(self, x_BNC: Tensor) -> Tensor:
        if self.with_cp and torch.is_grad_enabled() and x_BNC.requires_grad:
            return checkpoint(self._forward, x_BNC, use_reentrant=False)
        return self._forward(x_BNC)

    def _forward(self, x_BNC: Tensor) -> Tensor:
        x_BNC = x_BNC + self.drop_path(self.attn(self.ln1(x_BNC)))
        return x_BNC + self.drop_path(self.ffn(self.ln2(x_BNC)))


def drop_path_rates(drop_path_rate: float, num_layers: int) -> list[float]:
    """Stochastic depth rates rising linearly from 0 to ``drop_path_rate``."""
    return [drop_path_rate * i / max(num_layers - 1, 1) for i in range(num_layers)]


def transformer_blocks(
    num_layers: int, drop_path_rate: float, embed_dims: int, mlp_ratio: float, **kwargs: Any
) -> nn.ModuleList:
    """A stack of blocks with linearly rising stochastic depth.

    Args:
        num_layers: number of blocks.
        drop_path_rate: of the last block.
        embed_dims: width C.
        mlp_ratio: hidden width of the feed-forward networks over C.
        kwargs: the other arguments of :class:`TransformerBlock`.
    """
    return nn.ModuleList(
        TransformerBlock(
            embed_dims=embed_dims, feedforward_channels=int(mlp_ratio * embed_dims), drop_path_rate=rate, **kwargs
        )
        for rate in drop_path_rates(drop_path_rate, num_layers)
    )


def init_transformer_weights(module: nn.Module, std: float = 0.02) -> None:
    """The official initialisation, for ``nn.Module.apply``.

    Linear weights from a normal of deviation ``std`` truncated at +-2, biases
    0, LayerNorm 1 and 0 (segm/model/utils.py, ``init_weights``). Convolutions
    keep torch's default, as there.
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
