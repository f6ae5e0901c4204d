"""Export a trained model to a file that runs without this package, for ``tools/deployment/export.py``."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from mmseg.registry import DATASETS
from mmseg.structures import SegDataSample
from torch import Tensor

from .. import __version__, engine
from ..deployment import HeadLogits, ImageNetwork, probe_sizes, to_onnx, to_openvino, trace
from ..deployment.check import Agreement, compare, judge
from ..deployment.files import SUFFIXES, Network, check_format, write_network
from ..deployment.quantize import linear_layers, quantize
from ..errors import UserError, describe
from ..evaluation.confusion_matrix import class_scores, count_pairs, mean_score
from ..files import check_destination, refuse_existing
from ..models.dense import check_finite_logits
from ..models.segmentors import EoMT
from .images import read_image
from .inputs import find_tasks
from .loading import loading_transforms
from .predictor import Predictor

CALIBRATION_IMAGES = 128


@dataclass(frozen=True)
class ExportOptions:
    """What a file is to hold.

    Attributes:
        format: ``'onnx'``, ``'openvino'``, ``'pt2'`` or ``'torchscript'``.
        precision: ``'fp32'``, ``'fp16'``, ``'bf16'`` or ``'int8'``.
        size: height and width of the images; None: the window of ``test_cfg``, else ``img_size`` of the backbone.
        dynamic: take images of any size, and any number of them.
        argmax: return labels; otherwise logits.
        normalise: take RGB images of uint8; otherwise images as the data preprocessor returns them.
    """

    format: str = 'onnx'
    precision: str = 'fp32'
    size: tuple[int, int] | None = None
    dynamic: bool = False
    argmax: bool = True
    normalise: bool = True


class Export(NamedTuple):
    """What was written.

    Attributes:
        files: their paths.
        bytes: size of all of them.
        signature: input and output in words.
        agreement: with the model; None if it was not checked.
        scores: mIoU of the model and of the file, in percent; None if it was not measured.
        kept: number of last layers that int8 left in floating point.
    """

    files: list[str]
    bytes: int
    signature: str
    agreement: Agreement | None = None
    scores: tuple[float, float] | None = None
    kept: int = 0


def export(
    predictor: Predictor,
    path: str,
    options: ExportOptions,
    check: Sequence[str] = (),
    calibration: Sequence[str] = (),
    max_drop: float = 0.5,
    force: bool = False,
) -> Export:
    """Write a model to a file of another runtime. It segments whole images, without windows and augmentations.

    Args:
        predictor: the model, on the CPU.
        path: file to write.
        options: what it is to hold.
        check: image files. The written network is run on them, resized to its size, and the file is only kept if
            it agrees with the model, see :mod:`mmseg_segmenter.deployment.check`.
        calibration: image files for int8. Default: up to 128 of the config's training set.
        max_drop: with int8, points of mIoU that may be lost on the config's validation set. If more are, the head
            stays in floating point. It is not measured if there is no validation set.
        force: replace existing files.

    Raises:
        ExistingFileError: a file exists and ``force`` is not set.
        MissingPackageError: names the command that installs what is missing.
        UserError: the options contradict each other, the model cannot be exported, its logits are not finite, or
            the file differs from the model.
    """
    check_format(options.format, options.precision, options.dynamic)
    suffix = SUFFIXES[options.format]
    check_destination(path, suffix)
    files = [path, *([os.path.splitext(path)[0] + '.bin'] if options.format == 'openvino' else [])]
    for file in files:
        refuse_existing(file, force)
    if options.precision == 'int8' and isinstance(predictor.model, EoMT):
        raise UserError('--precision int8 does not take an EoMT; expected fp32, fp16 or bf16')
    size = options.size or _default_size(predictor)
    images = [_resized(predictor, file, size) for file in check]
    reference = ImageNetwork(predictor.model, options.normalise, argmax=False, rgb=_is_rgb(predictor))
    module = _network(predictor, options)
    example = torch.from_numpy(_inputs(predictor, options, np.zeros((*size, 3), np.uint8)))
    dynamic = _dynamic(options) if options.dynamic else None
    with torch.no_grad():
        check_finite_logits(reference(example), 'black image')

    def compared(network: Network) -> Agreement | None:
        if options.dynamic:
            _check_sizes(network, reference, predictor, options)
        parts = []
        for image in images:
            array = _inputs(predictor, options, image)
            with torch.no_grad():
                logits = reference(torch.from_numpy(array)).numpy()
            parts.append(compare(network(array), logits, options.precision))
        return judge(parts, options.precision) if parts else None

    def write(quantizer: Any, checked: Callable[[Network], Any]) -> Any:
        metadata = _metadata(predictor, options, size)
        return write_network(
            module, example, path, options.format, options.precision, metadata, dynamic, quantizer, checked, force
        )

    if options.precision != 'int8':
        return _report(files, options, size, write(None, compared))
    return _export_int8(predictor, options, size, files, write, compared, calibration, max_drop)


def _export_int8(
    predictor: Predictor,
    options: ExportOptions,
    size: tuple[int, int],
    files: list[str],
    write: Callable[..., Any],
    compared: Callable[[Network], Agreement | None],
    calibration: Sequence[str],
    max_drop: float,
) -> Export:
    """Quantise with all layers, and again with the head in floating point if too much mIoU is lost."""
    paths = list(calibration) or _training_images(predictor)
    samples = [_inputs(predictor, options, _resized(predictor, path, size)) for path in paths]
    validation = _Validation(predictor, options, size) if _has_validation_set(predictor) else None
    before = validation.score(_torch_network(predictor, options)) if validation else None

    class DropError(Exception):
        pass

    for kept in (0, _layers_of_head(predictor, options, size)):

        def checked(network: Network, last: bool = kept > 0) -> tuple[Agreement | None, float | None]:
            after = validation.score(network) if validation else None
            if before is not None and after is not None and before - after > max_drop:
                if last:
                    raise UserError(
                        f'int8 loses {before - after:.2f} points of mIoU ({before:.2f} to {after:.2f}), also with the '
                        f'head in floating point; expected at most {max_drop:g}'
                    )
                raise DropError
            return compared(network), after

        try:
            agreement, after = write(lambda graph, k=kept: quantize(graph, samples, len(samples), k), checked)
        except DropError:
            continue
        scores = None if before is None or after is None else (before, after)
        return _report(files, options, size, agreement)._replace(scores=scores, kept=kept)
    raise AssertionError('unreachable: the last attempt raises UserError')


def _check_sizes(network: Network, reference: ImageNetwork, predictor: Predictor, options: ExportOptions) -> None:
    """Check that a file for any size gives the labels of the model at sizes that it was not traced at.

    Raises:
        UserError: it does not, as with heads that decide something by the size. int8 only has to run.
    """
    backbone, head = (type(part).__name__ for part in (predictor.model.backbone, predictor.model.decode_head))
    for height, width in probe_sizes(predictor.model.backbone):
        coarse = np.random.default_rng(0).integers(0, 256, (7, 7, 3), np.uint8)
        array = _inputs(predictor, options, cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))
        try:
            found = network(array)
            if options.precision != 'int8':
                with torch.no_grad():
                    judge(
                        [compare(found, reference(torch.from_numpy(array)).numpy(), options.precision)],
                        options.precision,
                    )
        except Exception as error:  # of many classes
            raise UserError(
                f'--dynamic: with {backbone} and {head} the file does not work at all sizes, '
                f'such as {height}x{width}; export it at one size ({describe(error)})'
            ) from error


def _network(predictor: Predictor, options: ExportOptions) -> ImageNetwork:
    return ImageNetwork(predictor.model, options.normalise, options.argmax, _is_rgb(predictor))


def _torch_network(predictor: Predictor, options: ExportOptions) -> Network:
    module = _network(predictor, options)

    def run(array: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            result: np.ndarray = module(torch.from_numpy(array)).numpy()
        return result

    return run


def _is_rgb(predictor: Predictor) -> bool:
    """Return whether the network is given RGB; images are loaded as BGR."""
    return bool(getattr(predictor.model.data_preprocessor, 'channel_conversion', False))


def _default_size(predictor: Predictor) -> tuple[int, int]:
    crop = predictor.model.test_cfg.get('crop_size')
    size = crop or getattr(predictor.model.backbone, 'img_size', None)
    if size is None:
        raise UserError('the config has neither test_cfg.crop_size nor backbone.img_size; give --size HxW')
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _dynamic(options: ExportOptions) -> dict[int, str]:
    return {0: 'batch', 1: 'height', 2: 'width'} if options.normalise else {0: 'batch', 2: 'height', 3: 'width'}


def _resized(predictor: Predictor, path: str, size: tuple[int, int]) -> np.ndarray:
    """Read an image, and resize it to (height, width). Returns (H, W, 3) uint8 RGB."""
    image = read_image(path).bgr[..., ::-1]
    return np.ascontiguousarray(cv2.resize(np.ascontiguousarray(image), size[::-1], interpolation=cv2.INTER_LINEAR))


def _inputs(predictor: Predictor, options: ExportOptions, image: np.ndarray) -> np.ndarray:
    """Return the input of the network for an (H, W, 3) uint8 RGB image."""
    if options.normalise:
        return image[None]
    tensor = torch.from_numpy(np.ascontiguousarray(image[..., ::-1])).permute(2, 0, 1)
    batch = predictor.model.data_preprocessor(dict(inputs=[tensor], data_samples=[SegDataSample()]), False)
    inputs: Tensor = batch['inputs']
    return inputs.numpy()


def _metadata(predictor: Predictor, options: ExportOptions, size: tuple[int, int]) -> dict[str, str]:
    preprocessor = predictor.model.data_preprocessor
    values: dict[str, Any] = dict(
        classes=list(predictor.classes.names),
        palette=predictor.classes.palette.tolist(),
        size=None if options.dynamic else list(size),
        precision=options.precision,
        argmax=options.argmax,
        normalise=options.normalise,
        channel_order='rgb' if options.normalise or _is_rgb(predictor) else 'bgr',
        mean=getattr(preprocessor, 'mean', torch.zeros(3)).flatten().tolist(),
        std=getattr(preprocessor, 'std', torch.ones(3)).flatten().tolist(),
        checkpoint=os.path.basename(predictor.checkpoint),
        exporter=f'mmseg_segmenter {__version__}',
    )
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}


def _report(files: list[str], options: ExportOptions, size: tuple[int, int], agreement: Agreement | None) -> Export:
    written = [file for file in [*files, f'{files[0]}.data'] if os.path.exists(file)]
    h, w = ('H', 'W') if options.dynamic else size
    batch = 'B' if options.dynamic else 1
    taken = f'({batch}, {h}, {w}, 3) uint8 RGB' if options.normalise else f'({batch}, 3, {h}, {w}) float32, normalised'
    returned = f'labels ({batch}, {h}, {w})' if options.argmax else f'logits ({batch}, K, {h}, {w}) float32'
    return Export(written, sum(map(os.path.getsize, written)), f'image {taken} -> {returned}', agreement)


def _layers_of_head(predictor: Predictor, options: ExportOptions, size: tuple[int, int]) -> int:
    """Return the number of linear layers and convolutions of the head, attention included, in the exported graph."""

    def count(network: HeadLogits) -> int:
        program = trace(network, torch.zeros(1, 3, *size))
        onnx = options.format == 'onnx'
        return len(linear_layers(to_onnx(program, 'out').model_proto if onnx else to_openvino(program, 'out')))

    network = HeadLogits(predictor.model)
    whole = count(network)
    network.decode_head = _LastMap()
    return whole - count(network)


class _LastMap(torch.nn.Module):
    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        return maps[-1]


def _training_images(predictor: Predictor) -> list[str]:
    """Return up to 128 images of the training set, evenly spread over it.

    Raises:
        UserError: the config has no training set, or it has no images.
    """
    loader = predictor.cfg.get('train_dataloader') or {}
    dataset = next(engine.datasets(loader.get('dataset')), None)
    if dataset is None:
        raise UserError(f'{predictor.cfg.filename} has no train_dataloader; give calibration images')
    try:
        built = DATASETS.build({**dataset, 'pipeline': []})
        paths = [built.get_data_info(i)['img_path'] for i in range(len(built))]
    except (OSError, ValueError) as error:
        raise UserError(f'cannot find the training images for the calibration ({error}); give images') from error
    if not paths:
        raise UserError(f'no training images in {dataset.get("data_root")}; give calibration images')
    return paths[:: -(-len(paths) // CALIBRATION_IMAGES)]


def _has_validation_set(predictor: Predictor) -> bool:
    dataset = next(engine.datasets((predictor.cfg.get('val_dataloader') or {}).get('dataset')), None)
    if dataset is None:
        return False
    root, image_folder = dataset.get('data_root') or '', (dataset.get('data_prefix') or {}).get('img_path', '')
    return os.path.isdir(os.path.join(root, image_folder))


class _Validation:
    """The validation set of a config, at one size."""

    def __init__(self, predictor: Predictor, options: ExportOptions, size: tuple[int, int]) -> None:
        dataset = next(engine.datasets(predictor.cfg.val_dataloader.dataset))
        pipeline = loading_transforms(dataset.get('pipeline') or predictor.cfg.test_pipeline)
        self.dataset = DATASETS.build({**dataset, 'pipeline': pipeline})
        self.predictor, self.options, self.size = predictor, options, size

    def _samples(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for i in range(len(self.dataset)):
            results = self.dataset[i]
            image = np.ascontiguousarray(results['img'][..., ::-1])
            yield cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_LINEAR), results['gt_seg_map']

    def score(self, network: Network) -> float:
        """Return the mIoU of a network in percent. Its labels are resized to the annotation."""
        K = len(self.predictor.classes)
        matrix = torch.zeros(K * K, dtype=torch.long)
        for image, annotation in self._samples():
            found = network(_inputs(self.predictor, self.options, image))[0]
            if found.ndim == 3:
                found = found.argmax(axis=0) if len(found) > 1 else (found[0] > 0)
            labels = cv2.resize(found.astype(np.uint16), annotation.shape[::-1], interpolation=cv2.INTER_NEAREST)
            cells, counts = count_pairs(
                torch.from_numpy(annotation.astype(np.int64)), torch.from_numpy(labels.astype(np.int64)), K
            )
            matrix[cells] += counts
        return mean_score(class_scores(matrix.view(K, K).numpy()).iou) * 100


def parse_size(text: str) -> tuple[int, int]:
    """Return the height and width that ``HxW`` or one number stands for.

    Raises:
        UserError: it is neither, or not positive.
    """
    sides = text.lower().split('x')
    if len(sides) not in (1, 2) or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise UserError(f'--size {text}; expected HxW, such as 512x512')
    return int(sides[0]), int(sides[-1])


def image_files(inputs: Sequence[str]) -> list[str]:
    """Return the image files that inputs of ``predict.py`` stand for.

    Raises:
        MissingFileError: an input does not exist.
        UserError: one is a video or a camera.
    """
    tasks = find_tasks(inputs, raster=False) if inputs else []
    wrong = [task.source for task in tasks if task.kind not in ('image', 'auto')]
    if wrong:
        raise UserError(f'{wrong[0]} is no image')
    return [task.source for task in tasks]
