"""Segment images with a trained model."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from mmseg.utils import register_all_modules
from torch import Tensor

from ..engine.precision import DTYPES, check_cpu_precision, compile_parts
from ..errors import UserError
from ..models.dense import LogitMap, confidence_map, identity, label_map, probability_map
from ..models.segmentors import Segmenter
from ..visualization.sheet import to_rgb
from .images import MAX_PIXELS, InputImage, as_input_image
from .loading import build_model, build_tta, load_config, load_weights, test_transforms
from .prediction import Prediction

RUNTIMES = ('torch',)


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
        amp: ``'fp16'`` or ``'bf16'`` for mixed precision, default float32.
        compile: compile backbone and head with ``torch.compile``.
        runtime: what runs the network; ``'torch'``.
        tta: average over the scales and flips of the config's
            ``tta_pipeline``.
        cfg_options: changes to the config, ``{'model.test_cfg.mode': 'whole'}``.
        window_batch_size: sliding windows per forward pass.
        allow_partial: accept a checkpoint that lacks tensors of the model.
        max_pixels: larger image files are refused before they are decoded.

    Attributes:
        classes: names and colours of the classes, from the checkpoint, else
            from the config.
        model: the segmentor.
        cfg: its config.

    Raises:
        UserError: the config, the checkpoint or an option is not usable; the
            message says why.
    """

    def __init__(
        self,
        config: str | os.PathLike[str] | Config,
        checkpoint: str | os.PathLike[str] | None = None,
        device: str = 'auto',
        amp: str | None = None,
        compile: bool = False,
        runtime: str = 'torch',
        tta: bool = False,
        cfg_options: dict[str, Any] | None = None,
        window_batch_size: int | None = None,
        allow_partial: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if runtime not in RUNTIMES:
            raise UserError(f'runtime={runtime!r}; expected one of {", ".join(RUNTIMES)}')
        self.device = torch.device(get_device() if device == 'auto' else device)
        self._amp = _amp_dtype(amp, self.device)
        self._max_pixels = max_pixels
        self.cfg, weights = load_config(config, checkpoint)
        self.cfg.merge_from_dict(cfg_options or {})
        register_all_modules(init_default_scope=False)
        init_default_scope(self.cfg.get('default_scope', 'mmseg'))
        self.model = build_model(self.cfg, window_batch_size)
        self.classes = load_weights(self.model, self.cfg, weights, allow_partial)
        self.model.to(self.device).eval()
        if compile:
            compile_parts(self.model)
        self._tta = build_tta(self.cfg, self.model) if tta else None
        self._load, self._preprocess = test_transforms(self.cfg, tta)

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
        numbered = enumerate(images)
        # Read ahead a few batches, so that images of one size find each other.
        while chunk := list(islice(numbered, 1 if batch_size == 1 else 4 * batch_size)):
            prepared = [(index, *self._prepare(image, channel_order)) for index, image in chunk]
            groups: dict[tuple[int, ...], list[Any]] = {}
            for one in prepared:
                groups.setdefault(_shape(one[2]), []).append(one)
            done: dict[int, Prediction] = {}
            for group in groups.values():
                for start in range(0, len(group), batch_size):
                    batch = group[start : start + batch_size]
                    done.update((p.index, p) for p in self._predict(batch))
            yield from (done[index] for index, _ in chunk)

    def predict(self, image: Any, channel_order: str = 'bgr') -> Prediction:
        """Segment one image.

        Args: as :meth:`__call__`.
        """
        return next(self([image], channel_order=channel_order))

    def _prepare(self, image: Any, channel_order: str) -> tuple[InputImage, dict[str, Any]]:
        """Decode an image and run the test pipeline on it."""
        if self._load is not None and isinstance(image, str | os.PathLike):
            loaded = self._load(dict(img_path=os.fspath(image)))
            return InputImage(to_rgb(loaded['img'])[..., ::-1], os.fspath(image)), self._preprocess(loaded)
        decoded = as_input_image(image, channel_order, self._max_pixels)
        size = decoded.bgr.shape[:2]
        results = dict(img=decoded.bgr, img_path=decoded.source, img_shape=size, ori_shape=size)
        return decoded, self._preprocess(results)

    @torch.no_grad()
    def _predict(self, batch: Sequence[tuple[int, InputImage, dict[str, Any]]]) -> list[Prediction]:
        data = pseudo_collate([sample for _, _, sample in batch])
        with self.autocast():
            scores = self._scores(data)
        return [
            Prediction(
                image=image,
                labels=_numpy_labels(maps, getattr(self.model.decode_head, 'threshold', 0.5), len(self.classes)),
                classes=self.classes,
                index=index,
                _probabilities=partial(_to_numpy, probability_map, maps),
                _confidence=partial(_to_numpy, confidence_map, maps),
            )
            for (index, image, _), maps in zip(batch, scores, strict=True)
        ]

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


def _amp_dtype(amp: str | None, device: torch.device) -> torch.dtype | None:
    if amp is None:
        return None
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
