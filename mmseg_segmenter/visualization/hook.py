"""Draw validation and test images with their annotation and prediction."""

import copy
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from mmseg.registry import HOOKS
from mmseg.structures import SegDataSample
from torch.utils.data import DataLoader

from ..engine import ignore_index, loaded_channel_order
from ..errors import UserError
from ..names import path_parts, unique_names
from .palette import default_palette
from .sheet import contact_sheet, fit, prediction_row, resize_labels, save, to_rgb

_WORKERS = min(4, os.cpu_count() or 1)
_WAITING = 2 * _WORKERS  # pictures that wait to be drawn; bounds the memory

Read = Callable[[str], np.ndarray]  # from the path of an image to (H, W, C)


class Picture(NamedTuple):
    """A drawn image.

    Attributes:
        name: of the image in its dataset: its folders and its stem, with ``/`` between them.
        sheet: (H, W, 3) uint8 RGB.
    """

    name: str
    sheet: np.ndarray


class _Source(NamedTuple):
    """How to read and to name an image."""

    name: str
    read: Read


class _Style(NamedTuple):
    """Colours of the classes, and what else pictures of a dataset have in common."""

    classes: Sequence[str]
    palette: Sequence[Sequence[int]]
    ignore_index: int
    channel_order: str
    side: int | None


@HOOKS.register_module()
class SegmenterVisualizationHook(Hook):
    """Draw image, annotation and prediction side by side, with a legend of the classes in them.

    In a validation, a few images are drawn for the backends of the visualizer
    (files, TensorBoard, Weights & Biases). They are the same ones each time,
    evenly spaced in the order of the data loader of the first process. In a
    test, every image is drawn to ``show_dir`` by the process that segments it,
    under the image's own name and sub-folders.

    Threads read, draw and write. A picture of a validation that cannot be drawn
    is reported in the log and stops nothing. After a test it is an error.

    Args:
        draw: None draws validations, and tests if ``show_dir`` or ``show`` is given. True also draws tests without
            ``show_dir``: to the ``save_dir`` of the visualizer, as mmseg's hook, or else to the log folder. False
            draws nothing.
        number: images of a validation, at most.
        interval: draw every ``interval``-th validation, counted from the start of the process.
        side: pixels of the longer side of an image in a validation, at most. Tests draw it at its original size.
        show_dir: folder for the pictures of a test.
        suffix: ``'.png'`` or ``'.jpg'``, of the pictures of a test. JPEG takes a third of the space.
        show: show the pictures of a test in a window.
        wait_time: seconds that the window stays open; 0 waits for a key.

    Raises:
        UserError: an argument is out of range.
    """

    def __init__(
        self,
        draw: bool | None = None,
        number: int = 4,
        interval: int = 1,
        side: int = 512,
        show_dir: str | None = None,
        suffix: str = '.png',
        show: bool = False,
        wait_time: float = 0.0,
    ) -> None:
        for name, value, least in (('number', number, 0), ('interval', interval, 1), ('side', side, 32)):
            if value < least:
                raise UserError(f'SegmenterVisualizationHook: {name}={value}; expected at least {least}')
        if suffix not in ('.png', '.jpg'):
            raise UserError(f"SegmenterVisualizationHook: suffix={suffix!r}; expected '.png' or '.jpg'")
        self.draw = draw
        self.number = number
        self.interval = interval
        self.side = side
        self.show_dir = show_dir
        self.suffix = suffix
        self.show = show
        self.wait_time = wait_time
        self._validations = 0
        self._seen = 0  # images of the validation so far
        self._chosen: frozenset[int] = frozenset()  # positions of the images that are drawn
        self._sources: dict[int, dict[str, _Source]] = {}  # by id of the dataset
        self._style: _Style | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[tuple[str, Future[Picture]]] = deque()
        self._drawn = 0
        self._failures: list[tuple[str, Exception]] = []

    def before_val_epoch(self, runner: Runner) -> None:
        """Choose the images that are drawn."""
        self._validations += 1
        self._seen, self._chosen = 0, frozenset()
        if self.draw is False or self._validations % self.interval or not is_main_process():
            return
        loader = runner.val_dataloader
        self._chosen = frozenset(spread(self.number, len(loader.sampler)))
        self._start(runner, loader, self.side)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[SegDataSample] | None = None
    ) -> None:
        """Draw those of a batch that are chosen."""
        outputs = outputs or ()
        for position, output in enumerate(outputs, self._seen):
            if position in self._chosen:
                self._submit(runner.val_dataloader, output, None)
        self._seen += len(outputs)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Hand the pictures to the backends of the visualizer."""
        # runner.iter would build the training data if there is no training.
        step = 0 if runner._train_loop is None or isinstance(runner._train_loop, dict) else runner.iter
        names: Counter[str] = Counter()
        for picture in self._finish():
            name = 'val_' + picture.name.replace('/', '_')  # LocalVisBackend makes no folders
            names[name] += 1
            runner.visualizer.add_image(name if names[name] == 1 else f'{name}_{names[name]}', picture.sheet, step)
        for path, error in self._failures:
            runner.logger.warning(f'{path} was not drawn: {type(error).__name__}: {error}')
        self._failures = []

    def before_test_epoch(self, runner: Runner) -> None:
        """Find out where the pictures go."""
        if self.draw and not self.show_dir and not self.show:
            save_dir = (runner.cfg.get('visualizer') or {}).get('save_dir')
            self.show_dir = save_dir or os.path.join(runner.log_dir, 'vis_data', 'vis_image')
        if self._draws_tests:
            self._start(runner, runner.test_dataloader, side=None)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[SegDataSample] | None = None
    ) -> None:
        """Draw the images of a batch."""
        if not self._draws_tests:
            return
        for output in outputs or ():
            self._submit(runner.test_dataloader, output, self.show_dir)
            if self.show and is_main_process():
                self._show(runner.visualizer)

    def after_test(self, runner: Runner) -> None:
        """Wait for the pictures. The scores are already in the log.

        Raises:
            UserError: pictures could not be drawn; names the first.
        """
        for _ in self._finish():
            pass
        if self._failures:
            path, error = self._failures[0]
            raise UserError(
                f'{len(self._failures)} of {self._drawn} pictures were not drawn, the first of {path}: {error}'
            ) from error

    @property
    def _draws_tests(self) -> bool:
        # A window is opened by one process only.
        return self.draw is not False and bool(self.show_dir or (self.show and is_main_process()))

    def _start(self, runner: Runner, loader: DataLoader[Any], side: int | None) -> None:
        """Prepare to draw images of a data loader."""
        meta = getattr(loader.dataset, 'metainfo', {})
        self._style = _Style(*_classes(meta), ignore_index(runner.cfg), loaded_channel_order(runner.cfg), side)
        if id(loader.dataset) not in self._sources:
            self._sources[id(loader.dataset)] = dict(_find_sources(loader.dataset))
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix='draw')
        self._drawn, self._failures = 0, []

    def _submit(self, loader: DataLoader[Any], output: SegDataSample, folder: str | None) -> None:
        """Let a thread draw an image and, if there is a folder, write the picture there."""
        assert self._pool is not None and self._style is not None
        if 'pred_sem_seg' not in output:
            return
        path = str(output.get('img_path', 'image without a path'))
        source = self._sources[id(loader.dataset)].get(path)
        prediction = _to_numpy(output.pred_sem_seg)
        labels = _to_numpy(output.gt_sem_seg) if 'gt_sem_seg' in output else None
        destination = (folder, self.suffix) if folder else None
        future = self._pool.submit(_draw, source, path, prediction, labels, self._style, destination)
        self._pending.append((path, future))
        self._drawn += 1
        if folder is not None:
            while len(self._pending) > _WAITING:
                self._next()

    def _next(self) -> Picture | None:
        """Wait for the oldest picture. If it could not be drawn, take note of that and return None."""
        path, future = self._pending.popleft()
        try:
            return future.result()
        except Exception as error:  # a picture is not worth a training
            self._failures.append((path, error))
            return None

    def _finish(self) -> Iterator[Picture]:
        """Yield the pictures that are left, in order, and end the threads."""
        while self._pending:
            if (picture := self._next()) is not None:
                yield picture
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _show(self, visualizer: Visualizer) -> None:
        while self._pending:
            if (picture := self._next()) is not None:
                visualizer.show(picture.sheet, win_name=picture.name, wait_time=self.wait_time)


def spread(number: int, count: int) -> list[int]:
    """Return ``number`` evenly spaced positions among ``count``, or all of them if there are fewer."""
    number = min(number, count)
    return [(2 * k + 1) * count // (2 * number) for k in range(number)]


def _draw(
    source: _Source | None,
    path: str,
    prediction: np.ndarray,
    labels: np.ndarray | None,
    style: _Style,
    destination: tuple[str, str] | None,
) -> Picture:
    """Read, draw and write an image.

    Args:
        source: how to read and to name it.
        path: of the image.
        prediction: (H, W) labels.
        labels: annotation, or None.
        style: common to the dataset.
        destination: folder and suffix of the picture to write.
    """
    if source is None:
        raise UserError('it is not an image of the dataset')
    image = source.read(path)
    image = image if image.ndim == 2 or image.shape[2] in (1, 3) else image[..., : 3 if image.shape[2] > 3 else 1]
    picture = to_rgb(image, style.channel_order)
    if style.side is not None and max(picture.shape) > style.side:
        picture = fit(picture, style.side)
    if labels is not None:
        labels = resize_labels(labels, prediction.shape)
        # What is not a class is not scored either.
        labels = np.where(labels < len(style.classes), labels, style.ignore_index)
    name = os.path.basename(path)
    row = prediction_row(name, picture, prediction, style.palette, labels, style.ignore_index)
    titles = ['image', 'prediction'] if labels is None else ['image', 'annotation', 'prediction']
    sheet = contact_sheet([row], titles, style.classes, style.palette, ignore_index=style.ignore_index)
    if destination is not None:
        folder, suffix = destination
        save(os.path.join(folder, *source.name.split('/')) + suffix, sheet)
    return Picture(source.name, sheet)


def _to_numpy(data: Any) -> np.ndarray:
    """Convert the (1, H, W) labels of a ``PixelData`` to (H, W)."""
    labels = data.data[0].cpu().numpy()
    # Most label maps fit into a byte, which takes an eighth of the memory of those that wait.
    return labels.astype(np.uint8) if labels.size and labels.min() >= 0 and labels.max() < 256 else labels


def _classes(meta: dict[str, Any]) -> tuple[Sequence[str], Sequence[Sequence[int]]]:
    """Return names and colours of the classes of a dataset; numbers and :func:`default_palette` if it has none."""
    classes = meta.get('classes') or [f'class {k}' for k in range(256)]
    palette = meta.get('palette')
    if not palette or len(palette) < len(classes):
        palette = default_palette(len(classes)).tolist()
    return classes, palette


def _parts(dataset: Any) -> Iterator[Any]:
    """Yield the datasets that a dataset wraps or concatenates, or the dataset itself."""
    inner = getattr(dataset, 'datasets', None) or [part for part in [getattr(dataset, 'dataset', None)] if part]
    if not inner:
        yield dataset
    for part in inner:
        yield from _parts(part)


def _find_sources(dataset: Any) -> Iterator[tuple[str, _Source]]:
    """Yield the path of each image of a dataset and how to read and to name it."""
    paths: dict[str, Read] = {}
    roots = set()
    for part in _parts(dataset):
        if not isinstance(part, BaseDataset) or not part.pipeline.transforms:
            continue  # its images cannot be drawn
        read = _reader(part.pipeline.transforms[0])
        roots.add(str((part.data_prefix or {}).get('img_path') or ''))
        for index in range(len(part)):
            path = part.get_data_info(index).get('img_path')
            if path is not None:
                paths[str(path)] = read
    names = picture_names(list(paths), roots)
    for path, read in paths.items():
        yield path, _Source(names[path], read)


def _reader(transform: Any) -> Read:
    """Return a function that reads images as the first transform of a pipeline does. Threads may call it."""

    def read(path: str) -> np.ndarray:
        # A copy, because transforms may keep values in attributes while they run.
        return np.asarray(copy.copy(transform)(dict(img_path=path))['img'])

    return read


def picture_names(paths: Sequence[str], roots: set[str]) -> dict[str, str]:
    """Name the pictures of images by their folders below the root and their stem, see :func:`unique_names`.

    Args:
        paths: of the images, all different.
        roots: folders of the datasets. Of several, the folder that contains all is the root.

    Returns:
        Names by path, with ``/`` between the folders.
    """
    # os.path.commonpath would turn s3:// into s3:/
    root = os.path.commonprefix([f'{root.rstrip("/")}/' for root in roots if root])  # noqa: RUF071
    root = root[: root.rfind('/') + 1]
    names = unique_names({path: path_parts(path.removeprefix(root)) for path in paths})
    return dict(zip(paths, names, strict=True))
