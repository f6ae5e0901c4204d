"""Multi-head self-attention with a packed qkv projection."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UserError
from .cpu_linear import Linear, cpu_linear


class PackedSelfAttention(nn.Module):
    """Self-attention on ``F.scaled_dot_product_attention``.

    Parameters carry the names and layout of ``torch.nn.MultiheadAttention``,
    so its weights, and with them mmseg's checkpoints, load unchanged. Unlike
    that module it never asks for the attention weights, which is what keeps
    mmseg's ViT off the fused kernels.

    Args:
        embed_dims: width C of the tokens.
        num_heads: number of heads H; must divide ``embed_dims``.
        attn_drop_rate: dropout on the attention weights, training only.
        bias: biases on the qkv *and* the output projection, as
            ``torch.nn.MultiheadAttention`` has it.
    """

    def __init__(self, embed_dims: int, num_heads: int, attn_drop_rate: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        if embed_dims % num_heads:
            raise UserError(f'embed_dims={embed_dims} is not divisible by num_heads={num_heads}')
        self.num_heads = num_heads
        self.attn_drop_rate = attn_drop_rate
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dims, embed_dims))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dims)) if bias else None
        self.out_proj = Linear(embed_dims, embed_dims, bias=bias)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x_BNC: Tensor) -> Tensor:
        B, N, C = x_BNC.shape
        qkv = cpu_linear(x_BNC, self.in_proj_weight, self.in_proj_bias)
        qkv = qkv.view(B, N, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, N, C/H)
        dropout_p = self.attn_drop_rate if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p)
        return self.out_proj(x.transpose(1, 2).reshape(B, N, C))


class SelfAttention(nn.Module):
    """Attention and the dropout behind it, nested as mmcv nests them.

    ``attn.attn.in_proj_weight`` in a checkpoint is ``SelfAttention.attn``
    inside ``TransformerBlock.attn``.

    Args:
        proj_drop_rate: dropout after the output projection.
        others: as :class:`PackedSelfAttention`.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.attn = PackedSelfAttention(embed_dims, num_heads, attn_drop_rate, bias)
        self.proj_drop = nn.Dropout(proj_drop_rate)

    def forward(self, x_BNC: Tensor) -> Tensor:
        return self.proj_drop(self.attn(x_BNC))
