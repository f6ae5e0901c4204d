"""Mask transformer decoder of Segmenter (section 3.2).

Shapes: B images, C width of the encoder, D width of the decoder, K classes,
h x w patches.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmengine.logging import print_log
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..layers import Linear, init_transformer_weights, transformer_blocks
from .tiled_loss_head import TiledLossHead, check_num_classes


@cache
def _say_what_is_replaced() -> None:
    # Logged when a head is built, not at import, so that it is in the log file of a run.
    print_log("SegmenterMaskTransformerHead is mmseg_segmenter's, in place of mmseg's class of that name", 'current')


# force: mmseg 1.2.2 has a class of this name.
@MODELS.register_module(force=True)
class SegmenterMaskTransformerHead(TiledLossHead):
    """Score patches by their product with class embeddings, after a transformer on both.

    Has the arguments, defaults and state_dict keys of mmseg's class of the
    same name. It differs in that attention uses fused kernels, stochastic
    depth acts on both branches, the two projections are initialised as in the
    official code, and wrong numbers of classes are errors. Source: official
    ``segm/model/decoder.py``, ``MaskTransformer``.

    The paper's settings are ``drop_rate=attn_drop_rate=0.1`` and
    ``drop_path_rate=0``, which are not the defaults.

    Args:
        in_channels: width C of the encoder.
        num_layers: number of blocks.
        num_heads: number of attention heads (paper: ``embed_dims / 64``).
        embed_dims: width D of the decoder.
        mlp_ratio: hidden width of the feed-forward network divided by D.
        drop_path_rate: stochastic depth of the last block. It increases
            linearly from 0 at the first block.
        drop_rate: dropout after linear layers.
        attn_drop_rate: dropout on attention weights.
        num_fcs: number of linear layers in the feed-forward network.
        qkv_bias: add biases to the attention, the output projection included.
        act_cfg: activation, default exact (erf) GELU.
        norm_cfg: norm layer, default LayerNorm with eps 1e-5.
        init_std: standard deviation of the truncated normal distribution of
            linear weights and class embeddings.
        channels: unused, as in mmseg; default ``embed_dims``.
        kwargs: arguments of ``BaseDecodeHead``: ``num_classes`` (K >= 2),
            ``loss_decode``, ``ignore_index``, ...

    Raises:
        UserError: ``num_classes`` below 2, or ``out_channels`` other than
            ``num_classes``.
    """

    def __init__(
        self,
        in_channels: int,
        num_layers: int,
        num_heads: int,
        embed_dims: int,
        mlp_ratio: float = 4,
        drop_path_rate: float = 0.1,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        num_fcs: int = 2,
        qkv_bias: bool = True,
        act_cfg: dict[str, Any] | None = None,
        norm_cfg: dict[str, Any] | None = None,
        init_std: float = 0.02,
        channels: int | None = None,
        **kwargs: Any,
    ) -> None:
        _say_what_is_replaced()
        check_num_classes(type(self).__name__, kwargs)
        # The default of BaseDecodeHead initialises conv_seg, which this head does not have.
        kwargs.setdefault('init_cfg', None)
        super().__init__(in_channels=in_channels, channels=channels or embed_dims, **kwargs)
        del self.conv_seg
        norm_cfg = norm_cfg or dict(type='LN')
        self.init_std = init_std
        self.layers = transformer_blocks(
            num_layers,
            drop_path_rate,
            embed_dims=embed_dims,
            num_heads=num_heads,
            feedforward_channels=int(mlp_ratio * embed_dims),
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            num_fcs=num_fcs,
            qkv_bias=qkv_bias,
            act_cfg=act_cfg,
            norm_cfg=norm_cfg,
        )
        self.dec_proj = Linear(in_channels, embed_dims)
        self.cls_emb = nn.Parameter(torch.randn(1, self.num_classes, embed_dims))
        self.patch_proj = Linear(embed_dims, embed_dims, bias=False)
        self.classes_proj = Linear(embed_dims, embed_dims, bias=False)
        self.decoder_norm = build_norm_layer(norm_cfg, embed_dims)[1]
        self.mask_norm = build_norm_layer(norm_cfg, self.num_classes)[1]

    def init_weights(self) -> None:
        """Initialise as the official code does, then apply ``init_cfg`` if given."""
        for module in self.modules():
            init_transformer_weights(module, std=self.init_std)
        nn.init.trunc_normal_(self.cls_emb, std=self.init_std)
        for projection in (self.patch_proj, self.classes_proj):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
        if self.init_cfg:
            super().init_weights()

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Score each patch against each class.

        Args:
            inputs: feature maps; the one at ``in_index`` is (B, C, h, w).

        Returns:
            (B, K, h, w) logits at patch resolution.
        """
        x = self._transform_inputs(inputs)
        B, _, h, w = x.shape
        x = self.dec_proj(x.flatten(2).transpose(1, 2))  # (B, h*w, D)
        x = torch.cat((x, self.cls_emb.expand(B, -1, -1)), dim=1)  # (B, h*w + K, D)
        for layer in self.layers:
            x = layer(x)
        x = self.decoder_norm(x)
        patches = F.normalize(self.patch_proj(x[:, : h * w]), dim=-1)
        classes = F.normalize(self.classes_proj(x[:, h * w :]), dim=-1)
        masks = self.mask_norm(patches @ classes.transpose(1, 2))  # (B, h*w, K)
        return masks.transpose(1, 2).reshape(B, -1, h, w)
