"""What is measured: the cases, and the models that stand beside each other."""

import copy
import os
import statistics
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import mmengine.hub
import torch
from mmengine.config import Config, ConfigDict

from ...errors import MissingFileError, UserError
from ..baseline import heads, on_mmseg

MODES = ('forward', 'backbone', 'train', 'slide', 'tta')
# The dtype of tensors. 'tf32' computes float32 products in TensorFloat-32, 'fp16' and 'bf16' run under autocast.
DTYPES = dict(float32=torch.float32, tf32=torch.float32, fp16=torch.float16, bf16=torch.bfloat16)


class Variant(NamedTuple):
    """What runs a model, and in which precision (see ``deployment.load_network``)."""

    runtime: str
    precision: str = 'fp32'
    compile: bool = False


VARIANTS = {
    'torch': Variant('torch'),
    'compile': Variant('torch', compile=True),
    'bf16': Variant('torch', 'bf16'),
    'onnxruntime': Variant('onnxruntime'),
    'openvino': Variant('openvino'),
    'openvino-bf16': Variant('openvino', 'bf16'),
    'openvino-int8': Variant('openvino', 'int8'),
}


@dataclass(frozen=True)
class Case:
    """Everything about a measurement except the model.

    Attributes:
        mode: one of ``MODES``. ``'forward'`` runs the network without
            upsampling, ``'backbone'`` its encoder alone, ``'train'`` a
            ``train_step`` with SGD, ``'slide'`` a ``test_step``, and ``'tta'``
            a ``test_step`` of ``SegTTAModel`` over 12 augmentations.
        size: height and width of the images in pixels.
        batch_size: number of images.
        num_classes: number of classes of all heads; None keeps the config's.
        dtype: one of ``DTYPES``.
        compile: whether to compile the backbone and the head.
        images: files of images, instead of random ones. They are resized to
            ``size``. The first ones are timed; labels are compared on all.
    """

    mode: str
    size: tuple[int, int]
    batch_size: int = 1
    num_classes: int | None = None
    dtype: str = 'float32'
    compile: bool = False
    images: tuple[str, ...] = ()

    @property
    def autocast(self) -> str | None:
        """``'fp16'`` or ``'bf16'`` if the case runs under autocast."""
        return self.dtype if self.dtype in ('fp16', 'bf16') else None


@dataclass
class Contender:
    """A model, and what was measured of it.

    Attributes:
        name: the config, and the library if it is not this one.
        config: config of the model.
        variant: what runs it, one of ``VARIANTS``.
        checkpoint: file of its weights; default random ones.
        network: file of the network for another runtime than torch.
        kind: ``'ours'``, ``'mmseg'``, ``'timm'`` or ``'transformers'``, the
            library whose classes run.
        shares_weights: take the weights of the nearest contender before this
            one that does not share, and compare the results with that one.
        seconds: time of each repetition.
        first_seconds: time of the first run, which compiles.
        peak_gb: peak memory in GB of a process that runs this model alone
            (CPU: resident; GPU: allocated).
        model_gb: memory in GB before the first image.
        parameters: number of parameters.
        gflops: GFLOP of the matrix products of one run (``'forward'``,
            ``'backbone'``, ``'train'``).
        peak_share: rate of those products over the machine's best one.
        agreement: largest difference of the outputs (``'forward'``,
            ``'backbone'``), share of equal labels (``'slide'``, ``'tta'``), or
            difference of the losses (``'train'``).
        equal_labels: share of pixels of the given images whose labels are
            those of the model that ``agreement`` is with.
        file_mb: size of ``network`` in MB, with its weights.
        error: why there are no times.
    """

    name: str
    config: ConfigDict
    kind: str = 'ours'
    shares_weights: bool = False
    variant: str = 'torch'
    checkpoint: str | None = None
    network: str | None = None
    seconds: list[float] = field(default_factory=list)
    first_seconds: float | None = None
    peak_gb: float | None = None
    model_gb: float | None = None
    parameters: int = 0
    gflops: float | None = None
    peak_share: float | None = None
    agreement: float | None = None
    equal_labels: float | None = None
    file_mb: float | None = None
    error: str | None = None

    @property
    def median(self) -> float | None:
        """Median time of a run in seconds; None without one."""
        return statistics.median(self.seconds) if self.seconds else None


def contenders(
    config: str,
    against: Collection[str] = (),
    num_classes: int | None = None,
    options: Any = None,
    variants: Collection[str] = (),
    checkpoint: str | None = None,
) -> list[Contender]:
    """Return the model of a config, with the same model of other libraries and in other runtimes beside it.

    Args:
        config: path of a config, or ``mmseg::...``.
        against: libraries out of ``'mmseg'``, ``'timm'`` and
            ``'transformers'``; the last two have only the backbone. mmseg's
            classes come first, as the baseline. ``'frozen'`` is the same model
            with a frozen backbone, for ``'train'``.
        num_classes: number of classes of all heads; None keeps the config's.
        options: overrides of config entries.
        variants: what else runs the model, out of ``VARIANTS``.
        checkpoint: file of the weights; default random ones.

    Raises:
        FileNotFoundError: the config does not exist.
        ValueError: the config has no model, or mmseg cannot build it.
    """
    cfg = load_config(config, options)
    if 'model' not in cfg:
        raise UserError(f'{config} has no model')
    model = cfg.model
    model.pop('pretrained', None)
    model.setdefault('test_cfg', ConfigDict(mode='whole'))
    for key in ('init_cfg', 'pretrained'):  # speed needs no weights
        model.backbone.pop(key, None)
    if num_classes:
        for head in heads(model):
            head.num_classes = num_classes
    stem = os.path.splitext(os.path.basename(config))[0]
    ours = Contender(stem, model, shares_weights='mmseg' in against, checkpoint=checkpoint)
    found = [ours]
    found += [
        Contender(f'{stem} ({variant})', model, shares_weights=True, variant=variant, checkpoint=checkpoint)
        for variant in variants
    ]
    if 'frozen' in against:
        frozen = copy.deepcopy(model)
        frozen.backbone.frozen_exclude = []
        found.append(Contender(f'{stem} (frozen)', frozen, shares_weights=True, checkpoint=checkpoint))
    if 'mmseg' in against:
        # mmseg does not know these keys; with them the two would compute different results.
        for key in ('size_divisor', 'upscale_small'):
            model.test_cfg.pop(key, None)
        found.insert(0, Contender(f'{stem} (mmseg)', on_mmseg(model), 'mmseg', checkpoint=checkpoint))
    for kind in ('timm', 'transformers'):
        if kind in against:
            found.append(Contender(f'{stem} ({kind})', copy.deepcopy(model), kind, shares_weights=True))
    return found


def load_config(config: str, options: Any = None) -> Config:
    """Read a config file, or a config of an OpenMMLab package such as ``mmseg::fcn/...``.

    Raises:
        FileNotFoundError: the config does not exist.
    """
    if '::' in config:
        try:
            cfg = mmengine.hub.get_config(config)
        except (AssertionError, FileNotFoundError, ValueError) as error:
            raise MissingFileError(f'config {config} not found: {error}') from None
    elif os.path.isfile(config):
        cfg = Config.fromfile(config)
    else:
        raise MissingFileError(f'config {config} not found (working directory: {os.getcwd()})')
    cfg.merge_from_dict(options or {})
    return cfg
