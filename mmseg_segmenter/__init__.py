"""Segmenter (ICCV 2021) for MMSegmentation.

``custom_imports = dict(imports=['mmseg_segmenter'])`` in a config imports this
package. Importing it changes the process as follows:

- ``mmseg.models`` is imported, which registers mmseg's own classes.
- The classes of this package are registered with mmseg. Two of them replace
  mmseg's classes of the same name: ``SegmenterMaskTransformerHead`` and
  ``SegTTAModel``. (:mod:`mmseg_segmenter.drop_in` also replaces
  ``VisionTransformer`` and ``EncoderDecoder``.)
- mmengine reads checkpoints with the loader of this package, whether they are
  given by path, by URL or as ``augreg://NAME``.
- ``torch.serialization.add_safe_globals`` allows the classes that checkpoints
  of mmengine's ``Runner`` hold besides tensors.
- With ``mmcv-lite``, a placeholder for ``mmcv._ext`` stands in
  ``sys.modules``. Its operators raise an error when they are called.
- Warnings of mmengine and mmseg about their own deprecated code are silenced.
"""

__version__ = '0.1.0'

from . import compat  # noqa: F401  first: mmseg does not import without it
from .checkpoints import schemes
from .datasets import LoadLabelMap
from .engine import layer_decay  # noqa: F401  registers its class
from .evaluation import ConfusionMatrix, MAEMetric
from .models import LinearHead, Segmenter, SegmenterMaskTransformerHead, SegmenterViT

schemes.register()

__all__ = [
    'ConfusionMatrix',
    'LinearHead',
    'LoadLabelMap',
    'MAEMetric',
    'Segmenter',
    'SegmenterMaskTransformerHead',
    'SegmenterViT',
    '__version__',
]
