"""Segmenter (ICCV 2021) for MMSegmentation.

``custom_imports = dict(imports=['mmseg_segmenter'])`` in a config imports this
package, which makes its classes available to mmseg.

Importing it changes the following for the whole process:

- Classes are registered in mmseg's ``MODELS``, ``TRANSFORMS``, ``METRICS`` and
  ``HOOKS`` and in mmengine's ``OPTIM_WRAPPERS``, ``PARAM_SCHEDULERS`` and
  ``OPTIM_WRAPPER_CONSTRUCTORS``.
  ``SegmenterMaskTransformerHead``, ``SegTTAModel`` and ``CrossEntropyLoss``
  replace mmseg's classes of the same name; the last one only adds an option.
  (:mod:`mmseg_segmenter.drop_in`, which has to be imported explicitly,
  replaces two more.)
- mmengine's ``CheckpointLoader`` reads local files, ``http://``, ``https://``
  and ``augreg://`` with this package (:mod:`.checkpoints.schemes`), and what
  ``open-mmlab://``, ``mmcls://`` and ``torchvision://`` stand for.
- ``torch.serialization`` accepts the classes that checkpoints of mmengine
  contain, such as ``HistoryBuffer``, with ``weights_only=True``.
- With mmcv-lite, ``mmcv._ext`` is a placeholder, because mmseg imports it. Its
  operators raise an error that says how to install mmcv.
- Two deprecation warnings of mmengine and mmseg are filtered.

The last three are in :mod:`.compat`.
"""

__version__ = '0.1.0'

from . import compat  # noqa: F401  first: mmseg does not import without it
from .checkpoints import schemes
from .datasets import LoadImage, LoadLabelMap, SkipBadSamples
from .engine import layer_decay, two_stage_warmup, warmup_one_cycle  # noqa: F401  registers their classes
from .evaluation import ConfusionMatrix, MAEMetric
from .models import EoMT, EoMTHead, LinearHead, Segmenter, SegmenterMaskTransformerHead, SegmenterViT, TimmViT
from .visualization.hook import SegmenterVisualizationHook

schemes.register()

__all__ = [
    'ConfusionMatrix',
    'EoMT',
    'EoMTHead',
    'LinearHead',
    'LoadImage',
    'LoadLabelMap',
    'MAEMetric',
    'Segmenter',
    'SegmenterMaskTransformerHead',
    'SegmenterViT',
    'SegmenterVisualizationHook',
    'SkipBadSamples',
    'TimmViT',
    '__version__',
]
