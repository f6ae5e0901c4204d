"""Run unedited mmseg configs on this package's classes.

``custom_imports = dict(imports=['mmseg_segmenter.drop_in'])`` puts
``SegmenterViT`` under the name ``VisionTransformer`` and ``Segmenter`` under
``EncoderDecoder``. Arguments, state_dict keys and predictions are mmseg's, so
configs and checkpoints need no change. Results have no ``seg_logits`` unless
``test_cfg.return_logits`` asks for them.
"""

from mmengine.logging import print_log
from mmseg.registry import MODELS

from .models import Segmenter, SegmenterViT

MODELS.register_module(name='VisionTransformer', module=SegmenterViT, force=True)
MODELS.register_module(name='EncoderDecoder', module=Segmenter, force=True)
print_log('mmseg_segmenter.drop_in: VisionTransformer and EncoderDecoder are now SegmenterViT and Segmenter', 'current')
