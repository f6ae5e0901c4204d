"""EoMT: a plain ViT whose last blocks also have queries (arXiv 2503.19108)."""

from typing import Any

import torch
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import add_prefix
from torch import Tensor

from ...errors import UserError
from ..backbones import SegmenterViT
from ..decode_heads.eomt_head import EoMTHead, QueryLogits
from ..dense import MergedMasks, WindowMasks, merge_masks
from ..layers import QueryFeatures
from .segmenter import Segmenter


@MODELS.register_module()
class EoMT(Segmenter):
    """Segment with queries that join the tokens in the last blocks of the encoder.

    In training, a prediction is made in front of each of these blocks, and
    limits the attention of its queries in the block. In inference, there is
    one prediction at the end and no limit. The score of a class at a pixel is
    the sum over queries of ``sigmoid(mask) * softmax(class)``, without the
    probability of no class. Masks are enlarged to the pixels of a window
    before the sigmoid, and scores are averaged over windows; all of it tile by
    tile. ``seg_logits`` are these scores. Test-time augmentation averages
    scores divided by their sum. Sources: EoMT (arXiv 2503.19108);
    tue-mps/eomt, ``training/lightning_module.py``.

    The arguments are those of :class:`Segmenter`. The backbone is a
    :class:`SegmenterViT`, the head an :class:`EoMTHead`; there is no neck and
    no auxiliary head.

    Raises:
        UserError: the parts do not fit together, or as :class:`Segmenter`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._check_parts()

    def _check_parts(self) -> None:
        backbone, head = self.backbone, self.decode_head
        for name, part, expected in (('backbone', backbone, SegmenterViT), ('decode_head', head, EoMTHead)):
            if not isinstance(part, expected):
                raise UserError(f'EoMT: {name}.type={type(part).__name__}, expected {expected.__name__}')
        if self.with_neck or self.with_auxiliary_head:
            raise UserError('EoMT has no neck and no auxiliary_head; remove them from the config')
        if head.num_blocks > backbone.num_layers:
            raise UserError(
                f'decode_head.num_blocks={head.num_blocks}: the backbone has num_layers={backbone.num_layers}'
            )
        for own, other in (('patch_size', 'patch_size'), ('in_channels', 'embed_dims')):
            found, expected = getattr(head, own), getattr(backbone, other)
            if found != expected:
                raise UserError(f'decode_head.{own}={found}, backbone.{other}={expected}; expected the same')
        if isinstance(backbone.ln1, torch.nn.Identity):
            raise UserError('EoMT needs final_norm=True in the backbone, found False')

    def predictions(self, inputs: Tensor) -> list[QueryLogits]:
        """Return the predictions in front of each block with queries, and the one at the end.

        Args:
            inputs: (B, C, H, W), normalised.
        """
        head: EoMTHead = self.decode_head
        found: list[QueryLogits] = []

        def attn_mask(block: int, features: QueryFeatures, num_tokens: int) -> Tensor | None:
            found.append(head(features, recompute=head.with_cp))
            h, w = features.feature_map.shape[2:]
            return head.attention_mask(block, found[-1].masks, (h, w), num_tokens)

        found.append(
            head(self.backbone.encode_with_queries(inputs, head.query_embed.weight, head.num_blocks, attn_mask))
        )
        return found

    def extract_feat(self, inputs: Tensor | tuple[Tensor, ...]) -> QueryFeatures:
        """Return the queries and patches after the last block, without limits of the attention.

        Raises:
            UserError: ``inputs`` are cached outputs of the backbone.
        """
        if not isinstance(inputs, Tensor):
            raise UserError('EoMT cannot be trained on cached features: its queries are inside the backbone')
        head: EoMTHead = self.decode_head
        features: QueryFeatures = self.backbone.encode_with_queries(inputs, head.query_embed.weight, head.num_blocks)
        return features

    def loss(self, inputs: Tensor, data_samples: list[SegDataSample]) -> dict[str, Tensor]:
        """Return the losses of all predictions.

        Args:
            inputs: (B, C, H, W), normalised.
            data_samples: one per image, with ``gt_sem_seg`` (1, H, W).
        """
        losses: dict[str, Tensor] = add_prefix(
            self.decode_head.loss_by_feat(self.predictions(inputs), data_samples), 'decode'
        )
        return losses

    def _merge_windows(self, inputs: Tensor, metas: list[dict[str, Any]]) -> MergedMasks:
        return merge_masks(
            segment=lambda crops, images: self._window_masks(crops, [metas[i] for i in images]),
            **self._window_options(inputs),
        )

    def _window_masks(self, crops: Tensor, metas: list[dict[str, Any]]) -> WindowMasks:
        crops, size = self._padded(crops, metas)
        masks, classes = self.decode_head(self.extract_feat(crops))
        dtype = torch.promote_types(classes.dtype, torch.float32)  # under autocast too
        return WindowMasks(masks, classes.to(dtype).softmax(dim=-1)[..., :-1], size)
