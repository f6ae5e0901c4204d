"""Find what is wrong with a dataset before training does, or worse, does not."""

import multiprocessing
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import cv2
from mmengine import ProgressBar
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.fileio import list_dir_or_file
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import DATASETS

from ...engine import check_datasets, decode_head, evaluators
from ...errors import UserError
from .files import FileProblem, Inspector, SplitStatistics, transform_of

Severity = Literal['ERROR', 'WARNING']
_CHUNK = 8  # images that a worker takes at a time
_CONVERTER = 'tools/dataset_converters/rgb2labels.py'
# What each kind of problem with files is called, and what to do about it.
_KINDS: dict[str, tuple[Severity, str, str]] = {
    'image_unreadable': ('ERROR', 'images that cannot be read', ''),
    'image_truncated': ('ERROR', 'images that are cut short', 'copy them again'),
    'mask_unreadable': ('ERROR', 'masks that cannot be read', ''),
    'mask_truncated': ('ERROR', 'masks that are cut short', 'copy them again'),
    'image_without_mask': ('ERROR', 'images without a mask', ''),
    'mask_without_image': ('WARNING', 'masks without an image, which are not used', ''),
    'file_not_used': ('WARNING', 'files that do not end in the suffix of the dataset, and are not used', ''),
    'size_mismatch': ('ERROR', 'masks of another size than their image', ''),
    'mask_colour': (
        'ERROR',
        'masks with more than one channel',
        f'a mask holds one class number per pixel; make label maps of colours with {_CONVERTER}',
    ),
    'mask_jpeg': ('WARNING', 'masks saved as JPEG, which changes values', 'save masks as PNG'),
    'labels_cut_to_8_bits': (
        'ERROR',
        'masks with values above 255, which LoadAnnotations cuts to 8 bits',
        "use dict(type='LoadLabelMap', ignore_index=65535) in its place, see docs/own_dataset.md",
    ),
    'labels_outside': ('ERROR', 'masks with labels that are not a class', ''),
    'mask_all_ignored': ('WARNING', 'masks without one labelled pixel', ''),
    'smaller_than_crop': (
        'WARNING',
        'images smaller than the crop, which are padded',
        'if these are most, set a smaller crop_size or a larger scale of RandomResize',
    ),
    'image_rotated': (
        'WARNING',
        'images that are turned when read (EXIF orientation), while their masks are not',
        "if the masks were drawn on the image as stored: LoadImageFromFile(color_type='color_ignore_orientation')",
    ),
    'image_cut_to_8_bits': (
        'WARNING',
        'images with 16 bits that are read as 8',
        "LoadImageFromFile(color_type='unchanged') keeps them, see docs/own_dataset.md",
    ),
    'image_channels': (
        'ERROR',
        'images with another number of channels than the model takes',
        "set color_type of LoadImageFromFile ('color': 3, 'grayscale': 1), or in_channels of the backbone",
    ),
}


@dataclass
class Problem:
    """Something to know about a dataset.

    Attributes:
        severity: ``'ERROR'`` or ``'WARNING'``.
        split: ``'train'``, ``'val'``, ``'test'``, several, or '' for the config.
        kind: short name, for scripts.
        message: what was found.
        hint: what to do, if known.
        count: how many files, 0 if it is not about files.
        files: the first of them.
    """

    severity: Severity
    split: str
    kind: str
    message: str
    hint: str = ''
    count: int = 0
    files: list[str] = field(default_factory=list)


@dataclass
class Report:
    """What :func:`check` found.

    Attributes:
        config: path of the config.
        classes: names.
        ignore_index: label of pixels without a class.
        tallies: by split.
        problems: errors first.
        seconds: time for reading.
        workers: processes that did.
    """

    config: str
    classes: list[str]
    ignore_index: int
    tallies: dict[str, SplitStatistics]
    problems: list[Problem]
    seconds: float
    workers: int

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == 'ERROR']


def check_dataset(cfg: Config, workers: int | None = None, progress: bool = True) -> Report:
    """Read every image and mask of a config, as training and testing would.

    Memory does not grow with the dataset, but for 16 bytes per image that find
    duplicates.

    Args:
        cfg: whole config.
        workers: processes, default all cores; 1 works in this process.
        progress: show a progress bar on stderr.

    Raises:
        FileNotFoundError: a folder of the dataset does not exist.
        ValueError: no dataset or no classes in the config, or a setting that
            would spoil every file.
    """
    if workers is not None and workers < 1:
        raise UserError(f'workers={workers}; expected at least 1')
    loaders = [f'{split}_dataloader' for split in ('train', 'val', 'test') if cfg.get(f'{split}_dataloader')]
    check_datasets(cfg, tuple(loaders))
    model = _Model(cfg)
    problems: list[Problem] = []
    # Datasets below wrappers such as ConcatDataset, by split; a test set that is the val set is read once.
    parts: dict[str, list[BaseDataset]] = {}
    for name in loaders:
        dataset_cfg = cfg[name].dataset
        if name == 'test_dataloader' and 'val' in parts and dataset_cfg == cfg.val_dataloader.dataset:
            continue
        parts[name.removesuffix('_dataloader')] = list(_leaves(DATASETS.build(dataset_cfg)))
    if not parts:
        raise UserError(f'{cfg.filename} has no train_dataloader, val_dataloader or test_dataloader')
    classes = _check_config(cfg, model, parts, problems)
    inspectors = [
        (split, Inspector(d, model.num_classes, model.ignore_index, model.in_channels, _crop_size(d, split)))
        for split, datasets in parts.items()
        for d in datasets
    ]
    for split, inspector in inspectors:
        _check_reduce_zero_label(split, inspector.dataset)
    start = time.perf_counter()
    tallies = {split: SplitStatistics() for split in parts}
    duplicates = _Duplicates(inspectors)
    workers = workers or _cores()
    for k, tally in _inspect_all([inspector for _, inspector in inspectors], workers, progress):
        duplicates.add(k, tally.digests)
        tally.digests = {}
        tallies[inspectors[k][0]].merge(tally)
    seconds = time.perf_counter() - start
    for split, tally in tallies.items():
        for dataset in parts[split]:
            _check_names(dataset, tally)
        problems += _file_problems(split, tally, parts[split], model)
        problems += _label_problems(split, tally, parts[split][0], classes, model)
        problems += _brightness_problem(split, tally, model)
    problems += duplicates.problems()
    problems.sort(key=lambda problem: problem.severity)
    return Report(cfg.filename or '', classes, model.ignore_index, tallies, problems, seconds, workers)


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Model:
    """What of the model matters for its data.

    Attributes:
        num_classes: labels that are classes.
        ignore_index: label that is none.
        in_channels: channels of the input, None if the backbone does not say.
        mean: of the normalisation.
        seg_pad_val: label of padded pixels.
    """

    def __init__(self, cfg: Config) -> None:
        model = cfg.get('model') or {}
        head = decode_head(cfg)
        if head.get('num_classes') is None:
            raise UserError(f'{cfg.filename} has no model.decode_head.num_classes')
        # One sigmoid map tells two classes apart: mmseg's binary mode.
        self.num_classes = max(head.num_classes, 2) if head.get('out_channels') == 1 else head.num_classes
        self.ignore_index = head.get('ignore_index', 255)
        self.in_channels = (model.get('backbone') or {}).get('in_channels', 3)
        preprocessor = model.get('data_preprocessor') or {}
        self.mean = list(preprocessor.get('mean') or [])
        self.seg_pad_val = preprocessor.get('seg_pad_val', 255)


def _leaves(dataset: Any) -> Iterator[BaseDataset]:
    """The datasets that read files, looking into wrappers."""
    wrapped = getattr(dataset, 'datasets', None) or getattr(dataset, 'dataset', None)
    if wrapped is None:
        yield dataset
    else:
        for one in wrapped if isinstance(wrapped, list | tuple) else [wrapped]:
            yield from _leaves(one)


def _crop_size(dataset: BaseDataset, split: str) -> tuple[int, int] | None:
    if split != 'train':
        return None
    sizes = (getattr(transform, 'crop_size', None) for transform in dataset.pipeline.transforms)
    return next((size for size in sizes if isinstance(size, tuple)), None)


def _check_reduce_zero_label(split: str, dataset: BaseDataset) -> None:
    load = transform_of(dataset, LoadAnnotations)
    if load is not None and load.reduce_zero_label not in (None, dataset.reduce_zero_label):
        raise UserError(
            f'{split}_dataloader: LoadAnnotations has reduce_zero_label={load.reduce_zero_label}, the dataset '
            f'{dataset.reduce_zero_label}; set it in the dataset only'
        )


def _check_config(
    cfg: Config, model: _Model, parts: dict[str, list[BaseDataset]], problems: list[Problem]
) -> list[str]:
    """Settings that contradict each other.

    Returns:
        Names of the classes.
    """
    K, ignored = model.num_classes, model.ignore_index

    def error(kind: str, message: str, hint: str) -> None:
        problems.append(Problem('ERROR', '', kind, message, hint))

    names: Any = []
    for split, datasets in parts.items():
        for dataset in datasets:
            names = dataset.metainfo.get('classes') or []
            if isinstance(names, str):
                raise UserError(f'{split}_dataloader: classes={names!r} is one text; write a list, [{names!r}, ...]')
            if len(names) != K:
                error(
                    'num_classes',
                    f'{split} has {len(names)} classes ({", ".join(map(str, names[:5]))}{", ..." * (len(names) > 5)}), '
                    f'the head num_classes={K}',
                    'set model.decode_head.num_classes to the number of classes (and of auxiliary_head, if any)',
                )
    if K < 2:
        error('num_classes', f'num_classes={K}', "expected at least 2; for one class: ['background', 'object']")
    if 0 <= ignored < K:
        error(
            'ignore_index',
            f'ignore_index={ignored} is one of the {K} classes',
            'set a number that no class has, such as 65535: see "More than 255 classes" in docs/own_dataset.md',
        )
    elsewhere = {'data_preprocessor.seg_pad_val': model.seg_pad_val}
    for split in ('val', 'test'):
        for metric in evaluators(cfg, split):
            elsewhere[f'{split}_evaluator, {metric["type"]}.ignore_index'] = metric.get('ignore_index', 255)
    for split, datasets in parts.items():
        for transform in datasets[0].pipeline.transforms:
            if hasattr(transform, 'ignore_index'):
                name = f'{split} pipeline, {type(transform).__name__}.ignore_index'
                elsewhere[name] = transform.ignore_index
    for place, value in elsewhere.items():
        if value != ignored:
            error('ignore_index', f'{place} is {value}, ignore_index of the head {ignored}', 'set them to the same')
    return [str(name) for name in names]


# Reading, in several processes

_inspectors: list[Inspector] = []  # in a worker


def _start_worker(inspectors: list[Inspector]) -> None:
    cv2.setNumThreads(0)
    _inspectors[:] = inspectors


def _inspect_chunk(task: tuple[int, range]) -> tuple[int, SplitStatistics]:
    k, indices = task
    return k, _inspectors[k].inspect(indices)


def _inspect_all(inspectors: list[Inspector], workers: int, progress: bool) -> Iterator[tuple[int, SplitStatistics]]:
    """Tallies of all images, in order and in chunks, each with the index of its dataset."""
    tasks = [
        (k, range(start, min(start + _CHUNK, len(inspector.dataset))))
        for k, inspector in enumerate(inspectors)
        for start in range(0, len(inspector.dataset), _CHUNK)
    ]
    bar = ProgressBar(sum(len(indices) for _, indices in tasks), file=sys.stderr) if progress else None
    try:
        if workers == 1:
            for task in tasks:
                yield task[0], _advance(bar, inspectors[task[0]].inspect(task[1]))
        else:
            with multiprocessing.get_context().Pool(workers, _start_worker, (inspectors,)) as pool:
                for k, tally in pool.imap(_inspect_chunk, tasks):
                    yield k, _advance(bar, tally)
    finally:
        if bar is not None:
            print(file=sys.stderr)


def _advance(bar: ProgressBar | None, tally: SplitStatistics) -> SplitStatistics:
    if bar is not None:
        bar.update(tally.images)
    return tally


class _Duplicates:
    """Images with the same pixels, within and between splits."""

    def __init__(self, inspectors: list[tuple[str, Inspector]]) -> None:
        self.inspectors = inspectors
        self.first: dict[bytes, tuple[int, int]] = {}
        self.found: dict[tuple[str, str], FileProblem] = {}

    def add(self, k: int, digests: dict[int, bytes]) -> None:
        for i, digest in digests.items():
            j, other = self.first.setdefault(digest, (k, i))
            if (j, other) != (k, i):
                splits = self.inspectors[j][0], self.inspectors[k][0]
                path = self.inspectors[k][1].dataset.get_data_info(i)['img_path']
                same = self.inspectors[j][1].dataset.get_data_info(other)['img_path']
                self.found.setdefault(splits, FileProblem()).add(path, f'same as {same}')

    def problems(self) -> Iterator[Problem]:
        for (a, b), found in self.found.items():
            if a == b:
                yield Problem('WARNING', a, 'duplicate', 'images that are there twice', '', found.count, found.files)
            else:
                message, hint = f'images that are in {a} too', 'scores on them say nothing: remove them from one'
                yield Problem('ERROR', b, 'leak', message, hint, found.count, found.files)


# Names of files


def _check_names(dataset: BaseDataset, tally: SplitStatistics) -> None:
    """Find files that the dataset passes over: by a list of files it does so on purpose."""
    if os.path.isfile(dataset.ann_file or '') or dataset._indices is not None:
        return
    suffixes = (dataset.img_suffix, dataset.seg_map_suffix)
    folders = (dataset.data_prefix.get('img_path'), dataset.data_prefix.get('seg_map_path'))
    for folder, suffix in zip(folders, suffixes, strict=True):
        if not folder or not os.path.isdir(folder):
            continue
        for name in sorted(list_dir_or_file(folder, list_dir=False, recursive=True)):
            path = os.path.join(folder, name)
            if not name.endswith(suffixes if folders[0] == folders[1] else suffix):
                tally.problem('file_not_used', path, f'expected {suffix}')
    images, masks = folders
    if not masks or not os.path.isdir(masks):
        return
    for name in sorted(list_dir_or_file(masks, list_dir=False, suffix=dataset.seg_map_suffix, recursive=True)):
        stem = name[: len(name) - len(dataset.seg_map_suffix)]
        if not os.path.exists(os.path.join(images, stem + dataset.img_suffix)):
            if images == masks and name.endswith(dataset.img_suffix):
                continue  # an image, in the folder of both
            tally.problem('mask_without_image', os.path.join(masks, name))


def _naming_hint(dataset: BaseDataset, unpaired: list[str]) -> str:
    """What the names of masks have that those of images have not, if it is the same everywhere.

    Args:
        dataset: where to look.
        unpaired: paths of images without a mask.
    """
    images, masks = dataset.data_prefix.get('img_path'), dataset.data_prefix.get('seg_map_path')
    stems = [os.path.relpath(path.split(' (')[0], images)[: -len(dataset.img_suffix)] for path in unpaired]
    if any(stem.endswith(os.path.splitext(dataset.seg_map_suffix)[0]) for stem in stems) and images == masks:
        return (
            'masks are taken for images: with both in one folder neither suffix may end in the other; use two folders'
        )
    names = list(list_dir_or_file(masks, list_dir=False, recursive=True)) if os.path.isdir(masks) else []
    if not names:
        return f'{masks} is empty'
    rests: Counter[tuple[str, str]] = Counter()
    by_number: dict[tuple[str, ...], str] = {_numbers(name): name for name in names}
    for stem in stems[:100]:
        for name in names:
            before, found, after = name.partition(stem)
            if found and not after[:1].isdigit():
                rests[before, after] += 1
    if rests:
        (before, after), count = rests.most_common(1)[0]
        if not before and after != dataset.seg_map_suffix and 2 * count >= min(len(stems), 100):
            return f'masks are named <image>{after}: set seg_map_suffix={after!r}'
        if before and 2 * count >= min(len(stems), 100):
            return f'masks are named {before}<image>{after}: {_CONVERTER} --rename can take {before!r} away'
    match = next(((stem, by_number[_numbers(stem)]) for stem in stems if by_number.get(_numbers(stem))), None)
    if match and _numbers(match[0]):
        return (
            f'{match[0]}{dataset.img_suffix} may belong to {match[1]}: give both the same name before the suffix '
            f'({_CONVERTER} --rename)'
        )
    return ''


def _numbers(name: str) -> tuple[str, ...]:
    return tuple(re.findall(r'\d+', name))


# From sums to problems


def _file_problems(split: str, tally: SplitStatistics, datasets: list[BaseDataset], model: _Model) -> Iterator[Problem]:
    for kind, (severity, message, hint) in _KINDS.items():
        found = tally.found.get(kind)
        if found is None:
            continue
        if kind == 'image_without_mask':
            hint = next(filter(None, (_naming_hint(d, found.files) for d in datasets)), '')
        if kind == 'labels_outside':
            hint = _labels_hint(tally, datasets[0], model)
        if kind == 'mask_colour' and set(tally.mask_modes) == {'P'}:
            hint = "these have a palette, its index is the label: leave imdecode_backend of LoadAnnotations at 'pillow'"
        yield Problem(severity, split, kind, message, hint, found.count, found.files)


def _labels_hint(tally: SplitStatistics, dataset: BaseDataset, model: _Model) -> str:
    """What may be meant by labels that are no class."""
    K, values = model.num_classes, sorted(v for v in tally.stored if v != model.ignore_index)
    if not values:  # masks that Pillow cannot read, but the backend of the config can
        return ''
    found = f'the masks hold {_shown(values)}'
    if not dataset.reduce_zero_label and values == list(range(values[0], K + 1)) and values[-1] == K:
        if values[0] == 1:
            return f'{found}: labels start at 1; set reduce_zero_label=True, which makes 1 the first class'
        if values[0] == 0:
            return (
                f'{found}: one more than the {K} classes. If 0 is "no class", set reduce_zero_label=True; if it is a '
                'class such as background, add its name as the first of classes'
            )
    if not dataset.reduce_zero_label and values[-1] == K:
        return f'{found}, up to the number of classes: if labels start at 1, set reduce_zero_label=True'
    if K == 2 and len(values) > 4:
        return f'{found}: grey levels. {_CONVERTER} with two colours and --tolerance 127 makes 0 and 1 of them'
    if len(values) <= K:
        return (
            f"{found}: dict(type='LoadLabelMap', values={tuple(values)}) in place of LoadAnnotations takes them for "
            'the classes, in this order'
        )
    return f'{found}: {len(values)} values for {K} classes; is a name missing in classes?'


def _label_problems(
    split: str, tally: SplitStatistics, dataset: BaseDataset, classes: list[str], model: _Model
) -> Iterator[Problem]:
    """Labels that are classes, yet not what was meant."""
    if not tally.label_pixels:
        return
    K, ignored, values = model.num_classes, model.ignore_index, set(tally.stored)
    plain = type(transform_of(dataset, LoadAnnotations)) is LoadAnnotations
    total = sum(tally.label_pixels.values())
    if plain and values == {0, 255} and ignored == 255:
        yield Problem(
            'ERROR',
            split,
            'binary_255',
            'the masks hold 0 and 255 only, and 255 means "ignored": no foreground is left',
            "load them with dict(type='LoadLabelMap', values=(0, 255)) in place of LoadAnnotations, as "
            'configs/segmenter/segmenter_vit-s_mask_own-binary.py does',
        )
    elif tally.label_pixels.keys() <= {ignored}:
        yield Problem('ERROR', split, 'all_ignored', 'not one pixel is labelled', _reduce_hint(tally, dataset, model))
    never = [k for k in range(K) if k not in tally.label_pixels]
    if never and tally.label_pixels.keys() - {ignored}:
        names = ', '.join(f'{k} {classes[k]}' if k < len(classes) else str(k) for k in never[:10])
        names += ', ...' if len(never) > 10 else ''
        message = f'{len(never)} of {K} classes never seen: {names}'
        yield Problem('WARNING', split, 'class_never_seen', message, _reduce_hint(tally, dataset, model))
    share = tally.label_pixels[ignored] / total
    if 0.5 < share < 1:
        yield Problem('WARNING', split, 'mostly_ignored', f'{share:.0%} of the pixels are ignored')


def _reduce_hint(tally: SplitStatistics, dataset: BaseDataset, model: _Model) -> str:
    values = sorted(v for v in tally.stored if v != model.ignore_index)
    if dataset.reduce_zero_label and values and values[-1] == model.num_classes - 1 and 0 in tally.stored:
        return (
            f'the masks hold {_shown(values)}, and reduce_zero_label=True ignores 0 and makes 1 the first class; if 0 '
            'is the first class, set it to False'
        )
    return ''


def _brightness_problem(split: str, tally: SplitStatistics, model: _Model) -> Iterator[Problem]:
    if model.mean and tally.brightest > 255 and max(model.mean) < 256:
        yield Problem(
            'WARNING',
            split,
            'normalisation',
            f'pixel values up to {tally.brightest:g} are normalised with the mean {model.mean[0]:g} of 8-bit images',
            'set mean and std of data_preprocessor to those of the images, see docs/own_dataset.md',
        )


def _shown(values: list[int]) -> str:
    """``0 to 5``, or the first few."""
    if len(values) > 2 and values == list(range(values[0], values[-1] + 1)):
        return f'{values[0]} to {values[-1]}'
    return ', '.join(map(str, values[:10])) + (', ...' if len(values) > 10 else '')
