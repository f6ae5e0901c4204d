"""Multi-head self-attention with a packed qkv projection.

Shapes: B images, N tokens, C width, H heads, d = C / H width of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UserError
from .cpu_linear import Linear, cpu_linear
from .rope import Rope, apply_rope


class PackedSelfAttention(nn.Module):
    """Self-attention based on ``F.scaled_dot_product_attention``.

    The parameters have the names and layout of
    ``torch.nn.MultiheadAttention``, so mmseg's checkpoints load unchanged.
    That module leaves the fused kernels when attention weights are requested,
    as they are in mmseg's ViT; this one never returns them.

    Args:
        embed_dims: width C of the tokens.
        num_heads: number of heads H. Must divide ``embed_dims``.
        attn_drop_rate: dropout on the attention weights during training.
        bias: add a bias to the qkv *and* the output projection, as in
            ``torch.nn.MultiheadAttention``.

    Raises:
        UserError: ``embed_dims`` is not divisible by ``num_heads``.
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

    def forward(self, x_BNC: Tensor, rope: Rope | None = None, attn_mask: Tensor | None = None) -> Tensor:
        """Attend from each token to all tokens.

        Args:
            x_BNC: (B, N, C) tokens.
            rope: rotary position embedding of the last tokens; the tokens in
                front of them are not rotated.
            attn_mask: (..., R, N), broadcastable to (B, H, R, N); True where
                one of the first R tokens (row) attends to a token (column),
                or a float that is added to the attention scores. Other tokens
                attend to all, by kernels without a mask.

        Returns:
            (B, N, C).
        """
        B, N, C = x_BNC.shape
        q, k, v = self.heads(x_BNC, rope)
        dropout_p = self.attn_drop_rate if self.training else 0.0
        rows = 0 if attn_mask is None else attn_mask.shape[-2]
        parts = []
        if rows:
            part = F.scaled_dot_product_attention(q[:, :, :rows], k, v, attn_mask=attn_mask, dropout_p=dropout_p)
            parts.append(part)
        if rows < N:
            parts.append(F.scaled_dot_product_attention(q[:, :, rows:], k, v, dropout_p=dropout_p))
        x = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)  # (B, H, N, d)
        return self.out_proj(x.transpose(1, 2).reshape(B, N, C))

    def heads(self, x_BNC: Tensor, rope: Rope | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (B, H, N, d).

        Args:
            x_BNC: (B, N, C) tokens.
            rope: as :meth:`forward`; it rotates queries and keys.
        """
        B, N, C = x_BNC.shape
        qkv = cpu_linear(x_BNC, self.in_proj_weight, self.in_proj_bias)  # (B, N, 3 * C)
        qkv = qkv.view(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)  # (3, B, H, N, d)
        q, k, v = qkv.unbind(0)
        if rope is not None:
            q, k = apply_rope(qkv[:2], rope).unbind(0)
        return q, k, v
