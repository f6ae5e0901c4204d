"""Linear decoder of Segmenter (section 3.2, equation 1)."""

from typing import Any

from mmseg.registry import MODELS
from torch import Tensor

from ...errors import UserError
from .tiled_loss_head import TiledLossHead, check_num_classes


@MODELS.register_module()
class LinearHead(TiledLossHead):
    """Classify each patch token with one linear layer.

    Has the function and the keys (``conv_seg.{weight,bias}``) of the
    ``FCNHead`` without convolutions in mmseg's Segmenter configs. Source:
    official ``segm/model/decoder.py``, ``DecoderLinear``.

    Args:
        in_channels: width C of the encoder.
        channels: must equal ``in_channels``, the default.
        dropout_ratio: dropout of whole channels before the layer (paper: 0).
        kwargs: arguments of ``BaseDecodeHead``: ``num_classes`` (K >= 2),
            ``loss_decode``, ``ignore_index``, ...

    Raises:
        UserError: ``num_classes`` below 2, ``out_channels`` other than
            ``num_classes``, or ``channels`` other than ``in_channels``.
    """

    def __init__(
        self, in_channels: int, channels: int | None = None, dropout_ratio: float = 0.0, **kwargs: Any
    ) -> None:
        check_num_classes(type(self).__name__, kwargs)
        if channels not in (None, in_channels):
            raise UserError(f'LinearHead: channels={channels} differs from in_channels={in_channels}; leave it out')
        kwargs.setdefault('init_cfg', dict(type='TruncNormal', std=0.02, override=dict(name='conv_seg')))
        super().__init__(in_channels=in_channels, channels=in_channels, dropout_ratio=dropout_ratio, **kwargs)

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Classify each patch.

        Args:
            inputs: feature maps; the one at ``in_index`` is (B, C, h, w).

        Returns:
            (B, K, h, w) logits at patch resolution.
        """
        return self.cls_seg(self._transform_inputs(inputs))
