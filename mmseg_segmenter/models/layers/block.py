"""Pre-norm transformer block of the encoder and the mask decoder."""

import torch
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .rope import Rope


class TransformerBlock(nn.Module):
    """Two residual branches: attention, then a feed-forward network.

    Each branch is a norm, the layer, a layer scale and stochastic depth. The
    block is handed these parts, so another attention or feed-forward network
    needs no other block; :mod:`.build` puts the usual ones together.

    Stochastic depth acts on both branches, as in the official code. mmseg
    1.2.2 applies it to the second branch only.

    Args:
        ln1: norm of the attention branch.
        attn: called with the tokens, ``rope`` and ``attn_mask``.
        ln2: norm of the feed-forward branch.
        ffn: called with the tokens.
        ls1: layer scale of the attention branch, default none.
        ls2: layer scale of the feed-forward branch, default none.
        drop_path_rate: probability of dropping a branch for an image.
        with_cp: recompute activations in the backward pass to save memory.
    """

    def __init__(
        self,
        ln1: nn.Module,
        attn: nn.Module,
        ln2: nn.Module,
        ffn: nn.Module,
        ls1: nn.Module | None = None,
        ls2: nn.Module | None = None,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.ln1, self.attn, self.ls1 = ln1, attn, ls1 or nn.Identity()
        self.ln2, self.ffn, self.ls2 = ln2, ffn, ls2 or nn.Identity()
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()

    def forward(self, x_BNC: Tensor, rope: Rope | None = None, attn_mask: Tensor | None = None) -> Tensor:
        """See :meth:`PackedSelfAttention.forward` for ``rope`` and ``attn_mask``."""
        if self.with_cp and torch.is_grad_enabled() and x_BNC.requires_grad:
            return checkpoint(self._forward, x_BNC, rope, attn_mask, use_reentrant=False)
        return self._forward(x_BNC, rope, attn_mask)

    def _forward(self, x_BNC: Tensor, rope: Rope | None, attn_mask: Tensor | None) -> Tensor:
        x_BNC = x_BNC + self.drop_path(self.ls1(self.attn(self.ln1(x_BNC), rope, attn_mask)))
        return x_BNC + self.drop_path(self.ls2(self.ffn(self.ln2(x_BNC))))
