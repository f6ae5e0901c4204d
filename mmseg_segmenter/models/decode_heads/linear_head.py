"""Linear decoder of Segmenter (section 3.2, equation 1), DINOv2 and DINOv3."""

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import build_norm_layer
from mmseg.registry import MODELS
from torch import Tensor, nn

from ...errors import UserError
from .tiled_loss_head import TiledLossHead, check_num_classes


@MODELS.register_module()
class LinearHead(TiledLossHead):
    """Classify each patch token with one linear layer.

    Has the function and the keys (``conv_seg.{weight,bias}``) of the
    ``FCNHead`` without convolutions in mmseg's Segmenter configs. With
    ``norm_cfg`` it is the linear head of DINOv2 and DINOv3, and has the keys
    of DINOv2's ``BNHead`` (``bn.*``), so that released heads load. Sources:
    official ``segm/model/decoder.py``, ``DecoderLinear``;
    ``dinov2/eval/segmentation/models/decode_heads/linear_head.py``; DINOv3
    (arXiv 2508.10104) appendix D.

    Args:
        in_channels: width C of the encoder; a list with
            ``input_transform='resize_concat'``.
        channels: must equal ``in_channels`` or their sum, the default.
        dropout_ratio: dropout of whole channels (``Dropout2d``) before all
            else (Segmenter and DINOv2: 0, DINOv3: 0.1).
        norm_cfg: norm in front of the layer, such as
            ``dict(type='SyncBN')``; default none. A single process turns
            SyncBN into BN, as mmengine does for any model.
        kwargs: arguments of ``BaseDecodeHead``: ``num_classes`` (K >= 2),
            ``loss_decode``, ``ignore_index``, ... Several feature maps are
            concatenated with ``in_index=[0, 1, 2, 3]`` and
            ``input_transform='resize_concat'``. ``init_cfg`` defaults to a
            truncated normal distribution of standard deviation 0.02.

    Raises:
        UserError: ``num_classes`` below 2, ``out_channels`` other than
            ``num_classes``, ``channels`` other than ``in_channels``, or
            several ``in_channels`` that are not concatenated.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        channels: int | None = None,
        dropout_ratio: float = 0.0,
        norm_cfg: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        check_num_classes(type(self).__name__, kwargs)
        concatenated = kwargs.get('input_transform') == 'resize_concat'
        if isinstance(in_channels, int) == concatenated:
            raise UserError(
                f'LinearHead: in_channels={in_channels!r} with input_transform={kwargs.get("input_transform")!r}; '
                "expected a number with None, or a list with 'resize_concat'"
            )
        width = in_channels if isinstance(in_channels, int) else sum(in_channels)
        if channels not in (None, width):
            raise UserError(f'LinearHead: channels={channels} differs from in_channels={in_channels}; leave it out')
        kwargs.setdefault('init_cfg', dict(type='TruncNormal', std=0.02, override=dict(name='conv_seg')))
        super().__init__(
            in_channels=in_channels, channels=width, dropout_ratio=dropout_ratio, norm_cfg=norm_cfg, **kwargs
        )
        self.bn: nn.Module = build_norm_layer(norm_cfg, width)[1] if norm_cfg else nn.Identity()

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Classify each patch.

        Args:
            inputs: feature maps; the one at ``in_index`` is (B, C, h, w).

        Returns:
            (B, K, h, w) logits at patch resolution.
        """
        x = self._transform_inputs(inputs)
        if self.dropout is not None:
            x = self.dropout(x)
        logits: Tensor = self.conv_seg(self.bn(x))
        return logits
