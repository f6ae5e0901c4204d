"""One case on one model, ready to run again and again."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import mmcv
import mmengine
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.runner import load_checkpoint
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ...datasets.image_files import decode, read_file
from ...deployment.runtimes import RuntimeNetwork, load_network, release_weights
from ...engine.precision import compile_parts, enable_amp
from ...errors import UserError
from ...models.decode_heads.eomt_head import QueryLogits
from ...models.segmentors import EoMT
from .cases import DTYPES, VARIANTS, Case, Contender
from .foreign import ForeignBackbone
from .foreign_eomt import TransformersEoMT

TTA_RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # segm/eval/miou.py
# A training step computes the products of a forward pass and, for each, two in the backward pass. With a frozen
# backbone it computes fewer, which are not counted.
_PASSES = dict(forward=1, backbone=1, train=3)


def device() -> str:
    """Return where models run: ``'cuda'`` if there is a GPU, else ``'cpu'``."""
    return 'cuda' if torch.cuda.is_available() else 'cpu'


def prepare() -> None:
    """Register all classes, as a runner would."""
    import mmseg_segmenter  # noqa: F401

    register_all_modules(init_default_scope=True)
    mmengine.logging.MMLogger.get_instance('mmengine').setLevel('WARNING')
    torch.backends.cudnn.benchmark = True


@contextlib.contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Compute the float32 products of a GPU in TensorFloat-32, or not; in torch convolutions default to it."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = tf32
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


class Workload:
    """A case on one model; call it to run it once.

    Args:
        case: what to run.
        contender: the model.
        weights: state_dict to load, of the same config on this package's or
            mmseg's classes.
        count_flops: whether to count the products of a run. Counting takes
            more memory than the run itself.

    Attributes:
        model: the model.
        gflops: GFLOP of the matrix products of one run, or None if not counted.
        loaded: whether ``weights`` were loaded.
        autocast: precision of autocast, if any.
    """

    def __init__(
        self,
        case: Case,
        contender: Contender,
        weights: Mapping[str, Tensor] | None = None,
        count_flops: bool = True,
    ) -> None:
        self.case = case
        torch.manual_seed(0)
        with torch.device(device()):
            self.model = _build_model(case, contender).to(device())
        if contender.checkpoint is not None:
            load_checkpoint(self.model, contender.checkpoint, map_location='cpu', logger='silent')
        self.loaded = weights is not None and _load(self.model, weights)
        is_partly_frozen = not all(parameter.requires_grad for parameter in self.model.parameters())
        is_countable = case.mode in _PASSES and not (case.mode == 'train' and is_partly_frozen)
        self.gflops = self._count_gflops() if count_flops and is_countable else None
        self.model.train(case.mode == 'train')
        runtime, precision, compiled = VARIANTS[contender.variant]
        self.autocast = case.autocast or (precision if runtime == 'torch' and precision != 'fp32' else None)
        if runtime != 'torch':
            self.model.head_logits = load_network(self.model, runtime, precision, contender.network)
            release_weights(self.model)
        if case.compile or compiled:
            self.model.compile() if case.mode == 'backbone' else compile_parts(self.model)
        self._make_data()
        self.wrapper = _optimizer(self.model, case) if case.mode == 'train' else None
        self.tta = MODELS.build(dict(type='SegTTAModel', module=self.model)) if case.mode == 'tta' else None

    def _make_data(self) -> None:
        """Draw the images and labels, and do what is no part of the measured work."""
        case = self.case
        generator = torch.Generator().manual_seed(1)
        shape = (case.batch_size, 3, *case.size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        if case.images:
            images = torch.stack([_read_image(path, case.size) for path in case.images[: case.batch_size]])
        self.images = list(images)
        if case.mode in ('forward', 'backbone'):
            self.inputs = self._preprocess(images) if case.images else images.to(device()).float() / 127.5 - 1
            return
        shape = (case.batch_size, 1, *case.size)
        self.labels = torch.randint(0, self.model.num_classes, shape, generator=generator)
        if isinstance(self.model, EoMT | TransformersEoMT):
            # Each class in an image is a mask. An image of ADE20K has about nine classes, so these have nine areas.
            areas = torch.randint(0, self.model.num_classes, (case.batch_size, 1, 3, 3), generator=generator)
            self.labels = nn.functional.interpolate(areas.float(), case.size, mode='nearest').long()
        # each augmentation as its size, whether it is flipped, and its images
        self.augmentations: list[tuple[tuple[int, int], bool, list[Tensor]]] = []
        for ratio in TTA_RATIOS if case.mode == 'tta' else ():
            size = (round(case.size[0] * ratio), round(case.size[1] * ratio))
            scaled = nn.functional.interpolate(images.float(), size, mode='bilinear').byte()
            self.augmentations += [(size, False, list(scaled)), (size, True, list(scaled.flip(3)))]

    def _samples(self, size: tuple[int, int], flip: bool = False) -> list[SegDataSample]:
        """Make new data samples, since models write their results into them."""
        info = dict(
            ori_shape=self.case.size,
            img_shape=size,
            pad_shape=size,
            flip=flip,
            flip_direction='horizontal' if flip else None,
            img_path='',
        )
        return [SegDataSample(metainfo=info, gt_sem_seg=PixelData(data=label)) for label in self.labels]

    def _preprocess(self, images: Tensor) -> Tensor:
        inputs: Tensor = self.model.data_preprocessor(dict(inputs=list(images)), False)['inputs']
        return inputs

    def calibration_images(self) -> Tensor:
        """Return normalised images (N, 3, H, W) as the network sees them."""
        case = self.case
        images = [_read_image(path, case.size) for path in case.images] or self.images
        inputs = self._preprocess(torch.stack(images))
        if case.mode == 'forward' or self.model.test_cfg.mode == 'whole':
            return inputs
        height, width = self.model.test_cfg.crop_size
        return inputs[..., :height, :width]

    def _data(self) -> dict[str, Any]:
        return dict(inputs=list(self.images), data_samples=self._samples(self.case.size))

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        autocast = torch.autocast(device(), DTYPES[self.autocast]) if self.autocast else contextlib.nullcontext()
        with float32_products(self.case.dtype == 'tf32'), autocast:
            yield

    def __call__(self) -> Any:
        """Run once.

        Returns:
            The logits or the feature map; the labels of each image, flattened;
            or None for a training step.
        """
        if self.wrapper is not None:
            # the optimizer's wrapper turns on autocast
            with float32_products(self.case.dtype == 'tf32'):
                self.model.train_step(self._data(), self.wrapper)
            return None
        with torch.no_grad(), self._precision():
            if self.case.mode in ('forward', 'backbone'):
                return self._network(self.inputs)
            if self.tta is not None:
                inputs = [list(images) for _, _, images in self.augmentations]
                samples = [self._samples(size, flip) for size, flip, _ in self.augmentations]
                results = self.tta.test_step(dict(inputs=inputs, data_samples=samples))
            else:
                results = self.model.test_step(self._data())
            return [result.pred_sem_seg.data.flatten() for result in results]

    def _network(self, inputs: Tensor) -> Tensor:
        if isinstance(getattr(self.model, 'head_logits', None), RuntimeNetwork):
            return self.model.head_logits(inputs)
        if self.case.mode != 'backbone':
            output = self.model(inputs, mode='tensor')
            return output.masks if isinstance(output, QueryLogits) else output
        output = self.model(inputs)
        return output[-1] if isinstance(output, tuple) else output

    @torch.no_grad()
    def segment(self, path: str) -> Tensor:
        """Return the labels of an image file at the size of the case, flattened."""
        image = _read_image(path, self.case.size)
        with self._precision():
            if self.case.mode != 'forward' or isinstance(self.model, EoMT):
                (result,) = self.model.test_step(dict(inputs=[image], data_samples=self._samples(self.case.size)[:1]))
                labels: Tensor = result.pred_sem_seg.data
            else:
                logits = self._network(self._preprocess(image[None])).float()
                labels = nn.functional.interpolate(logits, self.case.size, mode='bilinear').argmax(dim=1)
        return labels.flatten()

    @torch.no_grad()
    def loss(self) -> float:
        """Return the loss of the data, computed without dropout."""
        self.model.eval()
        torch.manual_seed(0)  # losses that draw points draw the same
        with self._precision():
            losses = self.model(**self.model.data_preprocessor(self._data(), True), mode='loss')
        self.model.train()
        return self.model.parse_losses(losses)[0].item()

    def _count_gflops(self) -> float:
        """Count on plain matrix products, since torch counts no fused attention on CPUs, and with one image."""
        images = torch.zeros(1, 3, *self.case.size, device=device())
        self.model.eval()
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            self._network(images)
        return counter.get_total_flops() * self.case.batch_size * _PASSES[self.case.mode] / 1e9


def _build_model(case: Case, contender: Contender) -> Any:
    config = copy.deepcopy(contender.config)
    is_eomt = config.get('type') == 'EoMT'
    if case.mode == 'backbone' or (is_eomt and case.mode in ('forward', 'train')):
        # at the size of the images, so that no library resizes position embeddings
        config.backbone.img_size = case.size
    if is_eomt and case.mode == 'train':
        config.data_preprocessor.size = case.size  # no padding
    if contender.kind == 'transformers' and is_eomt and case.mode != 'backbone':
        return TransformersEoMT(config)
    if case.mode != 'backbone':
        if contender.kind in ('timm', 'transformers'):
            raise UserError(f'--vs {contender.kind} --mode {case.mode}: only an EoMT of transformers can do this')
        return revert_sync_batchnorm(MODELS.build(config))
    if contender.kind in ('timm', 'transformers'):
        return ForeignBackbone(contender.kind, config.backbone, case.size)
    return MODELS.build(config.backbone)


def _read_image(path: str, size: tuple[int, int]) -> Tensor:
    """Return an image file as (3, height, width) uint8, in BGR order."""
    image = decode(read_file(path), path, 'color', 'cv2')
    if image is None:
        raise UserError(f'{path} is not an image')
    return torch.from_numpy(mmcv.imresize(image, size[::-1])).permute(2, 0, 1)


def _load(model: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    if isinstance(model, ForeignBackbone | TransformersEoMT):
        return model.load_mmseg(weights)
    model.load_state_dict(weights, strict=True)
    return True


def _optimizer(model: nn.Module, case: Case) -> Any:
    sgd = dict(type='SGD', lr=1e-3, momentum=0.9, nesterov=True)
    training = Config(dict(optim_wrapper=dict(type='OptimWrapper', optimizer=sgd)))
    if case.autocast:
        enable_amp(training, case.autocast)
    return build_optim_wrapper(model, training.optim_wrapper)
