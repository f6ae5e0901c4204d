"""Feed-forward networks of a transformer block."""

import itertools
from typing import Any

import torch.nn.functional as F
from mmcv.cnn import build_activation_layer
from torch import Tensor, nn

from ...errors import UserError
from .cpu_linear import Linear


class FeedForward(nn.Module):
    """Linear layers with an activation between them.

    The keys (``layers.0.0``, ``layers.1``) are those of mmcv's ``FFN``. The
    residual connection belongs to the block.

    Args:
        embed_dims: width C of the tokens.
        feedforward_channels: width of the hidden layers.
        num_fcs: number of linear layers, at least 2.
        drop_rate: dropout after each linear layer.
        act_cfg: activation, default exact (erf) GELU.

    Raises:
        UserError: ``num_fcs`` is below 2.
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
            raise UserError(f'num_fcs={num_fcs}; expected at least 2')
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


class SwiGLU(nn.Module):
    """Gated feed-forward network of DINOv2-g and the larger DINOv3 models.

    ``w3(silu(a) * b)``, where ``a`` and ``b`` are the two halves of ``w12(x)``.
    The keys are those of DINOv2. Source: GLU Variants Improve Transformer
    (arXiv 2002.05202).

    Args:
        embed_dims: width C of the tokens.
        feedforward_channels: width of each half.
        drop_rate: dropout after each linear layer.
    """

    def __init__(self, embed_dims: int, feedforward_channels: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.w12 = Linear(embed_dims, 2 * feedforward_channels)
        self.w3 = Linear(feedforward_channels, embed_dims)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x_BNC: Tensor) -> Tensor:
        gate, value = self.w12(x_BNC).chunk(2, dim=-1)
        return self.drop(self.w3(self.drop(F.silu(gate) * value)))
