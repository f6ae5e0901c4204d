"""Head of EoMT (arXiv 2503.19108): classes and masks of the queries in a ViT.

Shapes: B images, Q queries, N tokens, C width of the encoder, K classes, h x w patches, H x W mask logits.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...errors import UserError
from ..layers import Linear, QueryFeatures
from .tiled_loss_head import check_num_classes


class QueryLogits(NamedTuple):
    """Prediction of the queries.

    Attributes:
        masks: (B, Q, H, W); above 0 where a pixel belongs to the mask of a query.
        classes: (B, Q, K + 1); the last one stands for no class.
    """

    masks: Tensor
    classes: Tensor


class UpscaleBlock(nn.Module):
    """Double the resolution of a feature map.

    The transposed convolution has no overlaps. With gradients it is computed
    as a matrix product, whose backward pass is faster on CPUs.

    Args:
        channels: channels C of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels, bias=False)
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, 2 * h, 2 * w) of (B, C, h, w)."""
        x = self.conv2(self.act(self._doubled(x)))
        # Over the channels; in channels_last format the transposed map is contiguous.
        normed: Tensor = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return normed

    def _doubled(self, x: Tensor) -> Tensor:
        """Return ``self.conv1(x)``, with gradients in channels_last format."""
        if not torch.is_grad_enabled():
            return self.conv1(x)
        weight, bias = self.conv1.weight, self.conv1.bias
        assert bias is not None
        C, D = weight.shape[:2]
        pixels = F.linear(x.permute(0, 2, 3, 1), weight.permute(2, 3, 1, 0).reshape(4 * D, C), bias.repeat(4))
        pixels = pixels.unflatten(3, (2, 2, D)).transpose(2, 3)  # (B, h, 2, w, 2, D)
        return pixels.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


@MODELS.register_module()
class EoMTHead(BaseDecodeHead):
    """Predict a class and a mask for each query of an :class:`~mmseg_segmenter.models.segmentors.EoMT`.

    The class is a linear function of the query. The mask is the product of
    the query, after three linear layers, and the patches, upscaled to a
    quarter of the image. Sources: EoMT (arXiv 2503.19108) section 3;
    tue-mps/eomt, ``models/eomt.py`` and ``models/scale_block.py``.

    Args:
        in_channels: width C of the encoder.
        num_queries: number Q of queries.
        num_blocks: number of last blocks of the encoder with queries.
        patch_size: side of a patch of the encoder in pixels. The patches are
            upscaled ``log2(patch_size) - 2`` times.
        channels: unused; default ``in_channels``.
        with_cp: upscale the patches again in the backward pass, to save the
            memory of what lies between. The last prediction, whose backward
            pass comes first, does not need it.
        kwargs: arguments of ``BaseDecodeHead``: ``num_classes`` (K >= 2),
            ``loss_decode`` (default
            ``dict(type='MaskClassificationLoss')``), ``ignore_index``, ...

    Attributes:
        mask_probabilities: (num_blocks,) probability that in training a query
            attends in a block to the patches of its mask only. 1 when the
            head is built; ``MaskAnnealingHook`` changes it, and checkpoints
            hold it.

    Raises:
        UserError: ``num_classes`` below 2, ``out_channels`` other than
            ``num_classes``, a number below 1, or patches that cannot be upscaled to
            a quarter of the image.
    """

    mask_probabilities: Tensor

    def __init__(
        self,
        in_channels: int,
        num_queries: int = 100,
        num_blocks: int = 4,
        patch_size: int = 16,
        channels: int | None = None,
        with_cp: bool = False,
        **kwargs: Any,
    ) -> None:
        check_num_classes(type(self).__name__, kwargs)
        for name, value in (('num_queries', num_queries), ('num_blocks', num_blocks)):
            if value < 1:
                raise UserError(f'EoMTHead: {name}={value}, expected at least 1')
        if patch_size < 8 or patch_size & (patch_size - 1):
            raise UserError(
                f'EoMTHead: patch_size={patch_size}, expected 8, 16 or another power of two above: patches are '
                'upscaled to a quarter of the image by steps of two'
            )
        kwargs.setdefault('loss_decode', dict(type='MaskClassificationLoss'))
        # The default of BaseDecodeHead initialises conv_seg, which this head does not have.
        kwargs.setdefault('init_cfg', None)
        super().__init__(in_channels=in_channels, channels=channels or in_channels, **kwargs)
        del self.conv_seg
        C = in_channels
        self.num_queries, self.num_blocks, self.patch_size = num_queries, num_blocks, patch_size
        self.with_cp = with_cp
        self.query_embed = nn.Embedding(num_queries, C)
        self.cls_embed = Linear(C, self.num_classes + 1)
        self.mask_embed = nn.Sequential(Linear(C, C), nn.GELU(), Linear(C, C), nn.GELU(), Linear(C, C))
        self.upscale = nn.Sequential(*(UpscaleBlock(C) for _ in range(int(math.log2(patch_size)) - 2)))
        self.register_buffer('mask_probabilities', torch.ones(num_blocks))

    def forward(self, features: QueryFeatures, recompute: bool = False) -> QueryLogits:
        """Predict classes and masks.

        Args:
            features: what the encoder returns.
            recompute: upscale again in the backward pass.
        """
        queries, feature_map = features
        if recompute and torch.is_grad_enabled():
            pixels = checkpoint(self.upscale, feature_map, use_reentrant=False)
        else:
            pixels = self.upscale(feature_map)
        masks = torch.einsum('bqc,bchw->bqhw', self.mask_embed(queries), pixels)
        return QueryLogits(masks, self.cls_embed(queries))

    def attention_mask(self, block: int, mask_logits: Tensor, grid: tuple[int, int], num_tokens: int) -> Tensor | None:
        """Return where tokens attend in a block in training.

        Queries attend to the patches of their mask, and to all queries and
        prefix tokens. Queries drawn with probability
        ``1 - mask_probabilities[block]`` attend to all tokens.

        Args:
            block: number among the blocks with queries.
            mask_logits: (B, Q, H, W) predicted in front of the block.
            grid: (h, w) of the patches.
            num_tokens: number N of tokens, queries included.

        Returns:
            (B, 1, Q, N), True where a query (row) attends to a token (column);
            None if all attend to all.
        """
        probability = self.mask_probabilities[block]
        if not probability > 0:
            return None
        B, Q = mask_logits.shape[:2]
        attends = F.interpolate(mask_logits.detach(), grid, mode='bilinear').flatten(2) > 0  # (B, Q, h * w)
        if probability < 1:
            attends |= torch.rand(B, Q, 1, device=attends.device) >= probability
        others = attends.new_ones(B, Q, num_tokens - attends.shape[2])
        return torch.cat((others, attends), dim=2)[:, None]

    def loss_by_feat(
        self, predictions: list[QueryLogits], batch_data_samples: list[SegDataSample]
    ) -> dict[str, Tensor]:
        """Return the losses of several predictions for the same images.

        Args:
            predictions: the one of the last block at the end.
            batch_data_samples: one per image, with ``gt_sem_seg`` (1, H, W).
        """
        labels = self._stack_batch_gt(batch_data_samples).squeeze(1)
        masks, classes = (list(logits) for logits in zip(*predictions, strict=True))
        losses: dict[str, Tensor] = self.loss_decode(masks, classes, labels, self.ignore_index)
        return losses
