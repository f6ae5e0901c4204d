"""Run unchanged mmseg configs with the classes of this package.

``custom_imports = dict(imports=['mmseg_segmenter.drop_in'])`` registers
``SegmenterViT`` as ``VisionTransformer`` and ``Segmenter`` as
``EncoderDecoder``. Arguments, state_dict keys and predictions are those of
mmseg, so configs and checkpoints work as they are. Results have ``seg_logits``
only with ``test_cfg.return_logits=True``.
"""

from mmengine.logging import print_log
from mmseg.registry import MODELS

from .models import Segmenter, SegmenterViT

MODELS.register_module(name='VisionTransformer', module=SegmenterViT, force=True)
MODELS.register_module(name='EncoderDecoder', module=Segmenter, force=True)
print_log('mmseg_segmenter.drop_in: VisionTransformer and EncoderDecoder are now SegmenterViT and Segmenter', 'current')
