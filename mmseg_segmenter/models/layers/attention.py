"""Self-attention as mmcv nests it in a transformer block."""

from torch import Tensor, nn

from .packed_attention import PackedSelfAttention
from .rope import Rope


class SelfAttention(nn.Module):
    """Self-attention followed by dropout.

    The key ``attn.attn.in_proj_weight`` of a checkpoint is
    ``TransformerBlock.attn``, then ``SelfAttention.attn``, as in mmcv's
    ``MultiheadAttention``.

    Args:
        embed_dims: width C of the tokens.
        num_heads: number of heads.
        attn_drop_rate: dropout on the attention weights.
        proj_drop_rate: dropout after the output projection.
        bias: add a bias to the qkv and the output projection.
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

    def forward(self, x_BNC: Tensor, rope: Rope | None = None, attn_mask: Tensor | None = None) -> Tensor:
        """See :meth:`PackedSelfAttention.forward`."""
        return self.proj_drop(self.attn(x_BNC, rope, attn_mask))
