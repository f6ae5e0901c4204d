"""The same model on mmseg's own classes."""

import copy
import inspect

from mmengine.config import ConfigDict
from mmseg.models.backbones.vit import VisionTransformer
from mmseg.models.decode_heads import FCNHead
from mmseg.models.decode_heads.segmenter_mask_head import SegmenterMaskTransformerHead
from mmseg.models.losses import CrossEntropyLoss
from mmseg.models.segmentors import EncoderDecoder

from ..errors import UserError


def on_mmseg(model: ConfigDict) -> ConfigDict:
    """A config of the same model, which takes the same weights, on the classes of mmseg 1.2.2.

    ``size_divisor`` and the other ``test_cfg`` keys that mmseg does not know
    go, so at image borders the two differ unless they are set back on both.

    Args:
        model: config of a model on this package's classes.

    Raises:
        ValueError: mmseg cannot build it (distilled backbone).
    """
    model = copy.deepcopy(model)
    if model.backbone.get('with_dist_token'):
        raise UserError('mmseg has no VisionTransformer with a dist_token to compare with')
    # the second names are ours, too, under mmseg_segmenter.drop_in
    if model.type in ('Segmenter', 'EncoderDecoder'):
        model.type = EncoderDecoder
    if model.backbone.type in ('SegmenterViT', 'VisionTransformer'):
        known = inspect.signature(VisionTransformer.__init__).parameters
        unknown = [key for key in model.backbone if key not in known and key != 'type']
        if unknown:
            raise UserError(f'mmseg has no VisionTransformer with {", ".join(unknown)} to compare with')
        model.backbone.update(type=VisionTransformer, patch_bias=True)
    for head in heads(model):
        if head.type == 'SegmenterMaskTransformerHead':
            head.type = SegmenterMaskTransformerHead
            head.setdefault('channels', head.embed_dims)
        elif head.type == 'LinearHead':
            if head.get('norm_cfg') or head.get('input_transform'):
                raise UserError('mmseg has no head like LinearHead with norm_cfg or input_transform to compare with')
            head.update(type=FCNHead, num_convs=0, kernel_size=1, concat_input=False, channels=head.in_channels)
            head.setdefault('dropout_ratio', 0.0)
        loss = head.setdefault('loss_decode', ConfigDict(type='CrossEntropyLoss'))
        for one in loss if isinstance(loss, list) else [loss]:
            if one.type == 'CrossEntropyLoss':
                one.type = CrossEntropyLoss
                one.pop('avg_over', None)
    keep = ('mode', 'crop_size', 'stride')
    model.test_cfg = ConfigDict({k: v for k, v in model.test_cfg.items() if k in keep})
    return model


def heads(model: ConfigDict) -> list[ConfigDict]:
    """Configs of the decode head and the auxiliary ones."""
    auxiliary = model.get('auxiliary_head') or []
    return [model.decode_head, *(auxiliary if isinstance(auxiliary, list) else [auxiliary])]
