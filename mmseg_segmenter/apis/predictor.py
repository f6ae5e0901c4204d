"""Segment images with a trained model."""

import contextlib
import copy
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from mmseg.utils import register_all_modules
from torch import Tensor

from ..datasets.image_files import MAX_PIXELS
from ..deployment.runtimes import check_precision, load_network, release_weights
from ..engine import registry_errors
from ..engine.precision import DTYPES, check_cpu_precision, compile_parts
from ..errors import UserError, describe
from ..models.dense import LogitMap, check_finite, confidence_map, identity, label_map, probability_map
from ..models.segmentors import Segmenter
from ..visualization.sheet import to_rgb
from .images import InputImage, as_input_image
from .loading import build_model, build_tta, load_config, load_weights, test_transforms
from .prediction import Prediction


class Prepared(NamedTuple):
    """An image that is ready for the network.

    Attributes:
        image: the decoded image.
        sample: what the test pipeline made of it.
        shape: sizes of the network's inputs; images of one shape can share a
            batch.
    """

    image: InputImage
    sample: dict[str, Any]
    shape: tuple[int, ...]


class Predictor:
    """A trained model, ready to segment images.

    Any mmseg config works. With a :class:`Segmenter` model, labels are
    computed tile by tile and probabilities only when they are asked for, so
    memory does not grow with the number of classes.

    Example::

        predictor = Predictor('config.py', 'checkpoint.pth')
        for prediction in predictor(['street.jpg', 'field.jpg']):
            prediction.save(f'{prediction.index}.png')

    Args:
        config: config file, :class:`mmengine.config.Config`, or a folder with
            one config and a checkpoint (a work directory of
            ``tools/train.py``, or what ``segm2mmseg.py`` wrote).
        checkpoint: path or URL of the weights. Default: those in the folder.
        device: ``'auto'`` (a GPU if there is one), ``'cpu'``, ``'cuda:1'``, ...
        amp: ``'fp16'`` or ``'bf16'`` for mixed precision, True for fp16 on a GPU
            and bf16 on a CPU; default float32.
        compile: compile backbone and head with ``torch.compile``.
        runtime: what runs the network, backbone and head: ``'torch'``,
            ``'onnxruntime'`` or ``'openvino'``. The latter two need the extra
            ``onnx`` or ``openvino``, and run on the CPU.
        tta: average over the scales and flips of the config's
            ``tta_pipeline``.
        cfg_options: changes to the config, ``{'model.test_cfg.mode': 'whole'}``.
        window_batch_size: sliding windows per forward pass.
        allow_partial: accept a checkpoint that lacks tensors of the model.
        max_pixels: larger image files are refused before they are decoded.
        precision: ``'fp32'`` (default), ``'bf16'``, ``'fp16'`` or ``'int8'``, as
            the runtime has it. With torch the same as ``amp``.
        network: file of this network, exported for the runtime. Default: it
            is made from the checkpoint, which takes seconds. ``'int8'`` needs
            a file.

    Attributes:
        classes: names and colours of the classes, from the checkpoint, else
            from the config.
        model: the segmentor.
        cfg: its config.
        checkpoint: path or URL of its weights.
        tta: whether augmentations are averaged.

    Raises:
        UserError: the config, the checkpoint or an option is not usable; the
            message says why.
    """

    def __init__(
        self,
        config: str | os.PathLike[str] | Config,
        checkpoint: str | os.PathLike[str] | None = None,
        device: str = 'auto',
        amp: str | bool | None = None,
        compile: bool = False,
        runtime: str = 'torch',
        tta: bool = False,
        cfg_options: dict[str, Any] | None = None,
        window_batch_size: int | None = None,
        allow_partial: bool = False,
        max_pixels: int = MAX_PIXELS,
        precision: str | None = None,
        network: str | os.PathLike[str] | None = None,
    ) -> None:
        check_precision(runtime, precision or 'fp32')
        if runtime != 'torch':
            _check_cpu_runtime(runtime, device, amp, compile)
            device = 'cpu'
        elif network is not None:
            raise UserError(f"network={os.fspath(network)!r} with runtime='torch'; expected onnxruntime or openvino")
        elif precision not in (None, 'fp32'):
            if amp:
                raise UserError(f'precision={precision!r} with amp={amp!r}; expected one of them')
            amp = precision
        self.device = _device(device)
        self._amp = _amp_dtype(amp, self.device)
        self._max_pixels = max_pixels
        self.cfg, self.checkpoint = load_config(config, checkpoint, cfg_options)
        register_all_modules(init_default_scope=False)
        init_default_scope(self.cfg.get('default_scope', 'mmseg'))
        if runtime != 'torch' and window_batch_size is None:
            # On a CPU, batches are no faster there (docs/performance.md).
            window_batch_size = (self.cfg.model.get('test_cfg') or {}).get('window_batch_size', 1)
        with registry_errors(self.cfg):
            self.model = build_model(self.cfg, window_batch_size)
        self.classes = load_weights(self.model, self.cfg, self.checkpoint, allow_partial)
        self.model.to(self.device).eval()
        if compile:
            compile_parts(self.model)
        if runtime != 'torch':
            file = None if network is None else os.path.expanduser(os.fspath(network))
            self.model.head_logits = load_network(self.model, runtime, precision or 'fp32', file)
            release_weights(self.model)
        self.tta = tta
        self._tta = build_tta(self.cfg, self.model) if tta else None
        self._transforms = test_transforms(self.cfg, tta)
        self._of_thread = threading.local()

    def __call__(
        self, images: Any | Iterable[Any], batch_size: int = 1, channel_order: str = 'bgr'
    ) -> Iterator[Prediction]:
        """Segment images, in their order.

        Args:
            images: one image or an iterable of them: paths, NumPy arrays
                (H, W, 3) of uint8, PIL images, or :class:`InputImage`.
            batch_size: images per forward pass. Only images that have one
                size after preprocessing share a batch.
            channel_order: ``'bgr'`` (as ``cv2.imread`` gives) or ``'rgb'``, of arrays.

        Yields:
            A :class:`Prediction` for each image.

        Raises:
            UserError: an image cannot be read; names it.
        """
        if batch_size < 1:
            raise UserError(f'batch_size={batch_size}; expected at least 1')
        if isinstance(images, str | os.PathLike | np.ndarray | InputImage) or not isinstance(images, Iterable):
            images = [images]
        images, done = iter(images), 0
        # Read ahead a few batches, so that images of one size find each other.
        while chunk := list(islice(images, 1 if batch_size == 1 else 4 * batch_size)):
            prepared = [self.prepare(image, channel_order) for image in chunk]
            groups: dict[tuple[int, ...], list[int]] = {}
            for i, one in enumerate(prepared):
                groups.setdefault(one.shape, []).append(i)
            found: dict[int, Prediction] = {}
            for group in groups.values():
                for start in range(0, len(group), batch_size):
                    batch = group[start : start + batch_size]
                    found.update(zip(batch, self.segment([prepared[i] for i in batch]), strict=True))
            for i in range(len(chunk)):
                found[i].index = done + i
                yield found.pop(i)
            done += len(chunk)

    def predict(self, image: Any, channel_order: str = 'bgr') -> Prediction:
        """Segment one image.

        Args: as :meth:`__call__`.
        """
        return next(self([image], channel_order=channel_order))

    def prepare(self, image: Any, channel_order: str = 'bgr') -> Prepared:
        """Decode an image and run the test pipeline on it. May be called from several threads.

        Args: as :meth:`__call__`.
        """
        if not hasattr(self._of_thread, 'transforms'):
            # Transforms keep values in attributes while they run.
            self._of_thread.transforms = copy.deepcopy(self._transforms)
        load, preprocess = self._of_thread.transforms
        if load is not None and isinstance(image, str | os.PathLike):
            results = load(dict(img_path=os.fspath(image)))
            decoded = InputImage(to_rgb(results['img'])[..., ::-1], os.fspath(image))
        else:
            decoded = as_input_image(image, channel_order, self._max_pixels)
            size = decoded.bgr.shape[:2]
            results = dict(img=decoded.bgr, img_path=decoded.source, img_shape=size, ori_shape=size)
        sample = preprocess(results)
        return Prepared(decoded, sample, _shape(sample))

    @torch.no_grad()
    def segment(self, batch: Sequence[Prepared]) -> list[Prediction]:
        """Run the model on images that :meth:`prepare` made ready.

        Args:
            batch: images of one shape.

        Returns:
            One prediction per image, in the same order.

        Raises:
            UserError: logits are NaN or infinite; names the image.
        """
        data = pseudo_collate([one.sample for one in batch])
        with self.autocast():
            scores = self._scores(data)
        predictions = [
            Prediction(
                image=one.image,
                labels=_numpy_labels(maps, getattr(self.model.decode_head, 'threshold', 0.5), len(self.classes)),
                classes=self.classes,
                _probabilities=partial(_to_numpy, probability_map, maps),
                _confidence=partial(_to_numpy, confidence_map, maps),
            )
            for one, maps in zip(batch, scores, strict=True)
        ]
        check_finite(scores, [one.image.source for one in batch])
        return predictions

    def _scores(self, data: dict[str, Any]) -> list[list[LogitMap]]:
        """Return for each image its logits, one map for each augmentation."""
        if not isinstance(self.model, Segmenter):
            return [[_as_logit_map(result)] for result in (self._tta or self.model).test_step(data)]
        if self._tta is not None:
            return self._tta.logit_maps(data)
        batch = self.model.data_preprocessor(data, False)
        return [[one] for one in self.model.logit_maps(**batch)]

    def autocast(self) -> Any:
        """Return the context in which the network runs: mixed precision, if chosen."""
        if self._amp is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self._amp)


def _check_cpu_runtime(runtime: str, device: str, amp: str | bool | None, compile: bool) -> None:
    """Refuse options that only torch has."""
    if device not in ('auto', 'cpu'):
        raise UserError(f'device={device!r} with runtime={runtime!r}; expected cpu, where this runtime runs')
    if amp:
        raise UserError(f"amp={amp!r} with runtime={runtime!r}; expected precision='bf16' or another one instead")
    if compile:
        raise UserError(f'compile=True with runtime={runtime!r}, which compiles by itself; leave compile out')


def _device(name: str) -> torch.device:
    try:
        device = torch.device(get_device() if name == 'auto' else name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # unknown, not built into torch, or not there
        raise UserError(f'device={name!r}: {describe(error)}') from None
    return device


def _amp_dtype(amp: str | bool | None, device: torch.device) -> torch.dtype | None:
    if amp is None or amp is False:
        return None
    if amp is True:
        amp = 'bf16' if device.type == 'cpu' else 'fp16'
    if amp not in DTYPES:
        raise UserError(f'amp={amp!r}; expected one of {", ".join(DTYPES)}')
    if device.type == 'cpu':
        check_cpu_precision(amp)
    return getattr(torch, DTYPES[amp])


def _shape(sample: dict[str, Any]) -> tuple[int, ...]:
    """Return the size of the network's input, of all augmentations with test-time augmentation."""
    inputs = sample['inputs']
    inputs = inputs if isinstance(inputs, list) else [inputs]
    return tuple(side for tensor in inputs for side in tensor.shape)


def _as_logit_map(result: Any) -> LogitMap:
    """Wrap the full-size logits of a segmentor that is not a :class:`Segmenter`."""
    logits = result.seg_logits.data.permute(1, 0, 2)  # (K, H, W) -> (H, K, W)
    H, K, W = logits.shape
    if K == 1:  # mmseg's results hold the sigmoid already
        logits = logits.logit()
    return LogitMap(logits, identity(H), identity(W))


def _numpy_labels(maps: Sequence[LogitMap], threshold: float, num_classes: int) -> np.ndarray:
    labels = label_map(maps, threshold).cpu().numpy()
    return labels if num_classes <= 256 else labels.astype(np.uint16)


def _to_numpy(function: Any, maps: Sequence[LogitMap]) -> np.ndarray:
    pixels: Tensor = function(maps)
    return pixels.cpu().numpy()
