"""The EoMT of transformers, to measure this one against.

Shapes: B images, n windows, Q queries, K classes.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.models.segmentors import BaseSegmentor
from mmseg.structures import SegDataSample
from torch import Tensor

from ...checkpoints.formats import official_eomt, transformers_eomt
from ...errors import UserError
from ...models.dense.windows import window_starts
from .foreign import require


class TransformersEoMT(BaseSegmentor):
    """``EomtForUniversalSegmentation`` with the architecture of an ``EoMT`` config, as a segmentor of mmseg.

    Windows, scores and labels are computed as its image processor does: all windows of an image in one batch, and the
    scores of all classes at full size.

    Args:
        model: config of the ``EoMT``, whose ``backbone.img_size`` is the size of the images or windows.

    Raises:
        MissingPackageError: transformers is not installed.
        UserError: transformers has no such model.
    """

    def __init__(self, model: ConfigDict) -> None:
        require('transformers')
        from transformers import EomtConfig, EomtForUniversalSegmentation

        super().__init__(data_preprocessor=model.data_preprocessor)
        self.num_classes, self.test_cfg = model.decode_head.num_classes, model.test_cfg
        self.model = EomtForUniversalSegmentation(EomtConfig(**_options(model)))

    def extract_feat(self, inputs: Tensor) -> Any:
        """Not used."""
        raise NotImplementedError

    def encode_decode(self, inputs: Tensor, batch_data_samples: Any) -> Any:
        """Not used."""
        raise NotImplementedError

    def load_mmseg(self, state: Mapping[str, Tensor]) -> bool:
        """Load the state_dict of an ``EoMT``."""
        official = official_eomt.network(official_eomt.from_mmseg(state))
        self.model.load_state_dict(transformers_eomt.from_official(official) | self._kept())
        return True

    def _kept(self) -> dict[str, Tensor]:
        return {key: value for key, value in self.model.state_dict().items() if key.startswith('criterion.')}

    def _forward(self, inputs: Tensor, data_samples: Any = None) -> Tensor:
        """Return the mask logits, (B, Q, h, w)."""
        self.model.attn_mask_probs.zero_()
        masks: Tensor = self.model(inputs).masks_queries_logits
        return masks

    def loss(self, inputs: Tensor, data_samples: list[SegDataSample]) -> dict[str, Tensor]:
        """Return the sum of all losses.

        Args:
            inputs: (B, 3, H, W), normalised.
            data_samples: one per image, with ``gt_sem_seg``.
        """
        self.model.attn_mask_probs.fill_(1)
        labels = [sample.gt_sem_seg.data[0] for sample in data_samples]
        classes = [found[found != 255] for found in map(torch.unique, labels)]
        masks = [(one == found[:, None, None]).float() for one, found in zip(labels, classes, strict=True)]
        return dict(loss=self.model(inputs, mask_labels=masks, class_labels=classes).loss)

    def predict(self, inputs: Tensor, data_samples: list[SegDataSample]) -> list[SegDataSample]:
        """Return the samples with labels at the size of ``inputs``.

        Args:
            inputs: (B, 3, H, W), normalised; one side is that of the windows.
            data_samples: one per image.
        """
        self.model.attn_mask_probs.zero_()
        H, W = inputs.shape[2:]
        side = min(H, W)
        starts = window_starts(max(H, W), side, side, even=True)
        along = 2 if H > W else 3
        crops = torch.cat([inputs.narrow(along, start, side) for start in starts])  # (n * B, 3, side, side)
        found = self.model(crops)
        masks = F.interpolate(found.masks_queries_logits, (side, side), mode='bilinear')
        classes = found.class_queries_logits.softmax(dim=-1)[..., :-1]
        scores = torch.einsum('bqc,bqhw->bchw', classes, masks.sigmoid())  # (n * B, K, side, side)
        for i, sample in enumerate(data_samples):
            total, count = (scores.new_zeros(scores.shape[1], H, W) for _ in range(2))
            for j, start in enumerate(starts):
                total.narrow(along - 1, start, side).add_(scores[j * len(inputs) + i])
                count.narrow(along - 1, start, side).add_(1)
            merged = F.interpolate((total / count)[None], (H, W), mode='bilinear', align_corners=False)[0]
            sample.pred_sem_seg = PixelData(data=merged.argmax(dim=0)[None])
        return data_samples


def _options(model: ConfigDict) -> dict[str, Any]:
    """Return the arguments of ``EomtConfig``."""
    backbone, head = model.backbone, model.decode_head
    size = backbone.img_size
    height, width = (size, size) if isinstance(size, int) else size
    registers, scale = backbone.get('num_registers', 0), backbone.get('layer_scale')
    if height != width or not registers or scale is None or backbone.get('cls_pos_embed', True) or 'rope' in backbone:
        raise UserError(
            'transformers has EoMT for square images or windows, on a ViT with num_registers, layer_scale and '
            f'cls_pos_embed=False (DINOv2 with registers); found img_size={height}x{width} and '
            f'{", ".join(sorted(backbone))}'
        )
    norm = backbone.get('norm_cfg') or {}
    loss = head.get('loss_decode') or {}
    return dict(
        hidden_size=backbone.embed_dims,
        num_hidden_layers=backbone.num_layers,
        num_attention_heads=backbone.num_heads,
        image_size=height,
        patch_size=backbone.patch_size,
        layer_norm_eps=norm.get('eps', 1e-5),
        layerscale_value=scale,
        num_register_tokens=registers,
        num_upscale_blocks=(backbone.patch_size // 4).bit_length() - 1,
        num_queries=head.get('num_queries', 100),
        num_blocks=head.get('num_blocks', 4),
        num_labels=head.num_classes,
        train_num_points=loss.get('num_points', 12544),
        attn_implementation='sdpa',
    )
