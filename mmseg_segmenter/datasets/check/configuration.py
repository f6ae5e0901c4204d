"""Settings of a config that matter for its data, and those that contradict each other."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import DATASETS

from ...engine import check_datasets, decode_head, evaluators
from ...errors import UserError
from ...labels import num_labels
from ..skip_bad import plain_datasets
from .results import Problem


class ModelSettings(NamedTuple):
    """Settings of the model that its data must fit.

    Attributes:
        num_classes: number of classes K, labels 0 to K - 1.
        ignore_index: label of pixels without a class.
        in_channels: channels of the input, None if the backbone has no such
            argument.
        mean: mean of the normalisation, empty if there is none.
        seg_pad_val: label of padded pixels.
    """

    num_classes: int
    ignore_index: int
    in_channels: int | None
    mean: tuple[float, ...]
    seg_pad_val: int

    @classmethod
    def from_config(cls, cfg: Config) -> 'ModelSettings':
        """Read the settings of a config.

        Raises:
            UserError: the head has no ``num_classes``.
        """
        model = cfg.get('model') or {}
        head = decode_head(cfg)
        if head.get('num_classes') is None:
            raise UserError(f'{cfg.filename} has no model.decode_head.num_classes')
        preprocessor = model.get('data_preprocessor') or {}
        return cls(
            num_classes=num_labels(head.num_classes, head.get('out_channels')),
            ignore_index=head.get('ignore_index', 255),
            in_channels=(model.get('backbone') or {}).get('in_channels', 3),
            mean=tuple(preprocessor.get('mean') or ()),
            seg_pad_val=preprocessor.get('seg_pad_val', 255),
        )


def build_datasets(cfg: Config) -> dict[str, list[BaseDataset]]:
    """Build the datasets of a config and unpack wrappers such as ``ConcatDataset``.

    Returns:
        The datasets that read files, by split. The test split is left out if
        it is the validation split.

    Raises:
        FileNotFoundError: a folder does not exist.
        UserError: the config has no dataset.
    """
    loaders = [f'{split}_dataloader' for split in ('train', 'val', 'test') if cfg.get(f'{split}_dataloader')]
    check_datasets(cfg, tuple(loaders))
    datasets: dict[str, list[BaseDataset]] = {}
    for name in loaders:
        if name == 'test_dataloader' and 'val' in datasets and cfg[name].dataset == cfg.val_dataloader.dataset:
            continue
        datasets[name.removesuffix('_dataloader')] = list(plain_datasets(DATASETS.build(cfg[name].dataset)))
    if not datasets:
        raise UserError(f'{cfg.filename} has no train_dataloader, val_dataloader or test_dataloader')
    return datasets


def find_transform(dataset: BaseDataset, kind: type) -> Any:
    """Return the first transform of a class in the pipeline of a dataset, or None."""
    return next((transform for transform in dataset.pipeline.transforms if isinstance(transform, kind)), None)


def class_names(datasets: dict[str, list[BaseDataset]]) -> list[str]:
    """Return the class names of the last dataset.

    Raises:
        UserError: ``classes`` is a string.
    """
    names: Any = []
    for split, group in datasets.items():
        for dataset in group:
            names = dataset.metainfo.get('classes') or []
            if isinstance(names, str):
                raise UserError(
                    f'{split}_dataloader: classes={names!r} is a string; expected a list such as [{names!r}, ...]'
                )
    return [str(name) for name in names]


def check_reduce_zero_label(split: str, dataset: BaseDataset) -> None:
    """Check that the dataset and its pipeline agree on ``reduce_zero_label``.

    Raises:
        UserError: they differ.
    """
    load = find_transform(dataset, LoadAnnotations)
    if load is not None and load.reduce_zero_label not in (None, dataset.reduce_zero_label):
        raise UserError(
            f'{split}_dataloader: {type(load).__name__} has reduce_zero_label={load.reduce_zero_label}, the dataset '
            f'has {dataset.reduce_zero_label}; set it in the dataset only'
        )


def find_contradictions(cfg: Config, model: ModelSettings, datasets: dict[str, list[BaseDataset]]) -> Iterator[Problem]:
    """Find settings that contradict each other."""
    K, ignored = model.num_classes, model.ignore_index
    for split, group in datasets.items():
        for dataset in group:
            names = list(map(str, dataset.metainfo.get('classes') or []))
            if len(names) != K:
                shown = ', '.join(names[:5]) + (', ...' if len(names) > 5 else '')
                message = f'{split} has {len(names)} classes ({shown}), the head has num_classes={K}'
                hint = 'set model.decode_head.num_classes to the number of classes (and of auxiliary_head, if any)'
                yield Problem('ERROR', '', 'num_classes', message, hint)
    if K < 2:
        hint = "expected at least 2; for one class: ['background', 'object']"
        yield Problem('ERROR', '', 'num_classes', f'num_classes={K}', hint)
    if 0 <= ignored < K:
        hint = 'set a number that no class has, such as 65535: see "More than 255 classes" in docs/own_dataset.md'
        yield Problem('ERROR', '', 'ignore_index', f'ignore_index={ignored} is one of the {K} classes', hint)
    for place, value in _other_ignore_indices(cfg, model, datasets).items():
        if value != ignored:
            message = f'{place} is {value}, ignore_index of the head is {ignored}'
            yield Problem('ERROR', '', 'ignore_index', message, 'set them to the same value')


def _other_ignore_indices(
    cfg: Config, model: ModelSettings, datasets: dict[str, list[BaseDataset]]
) -> dict[str, int | None]:
    """Return the labels that other parts of the config ignore, by the name of the setting."""
    places: dict[str, int | None] = {'data_preprocessor.seg_pad_val': model.seg_pad_val}
    for split in ('val', 'test'):
        for metric in evaluators(cfg, split):
            places[f'{split}_evaluator, {metric["type"]}.ignore_index'] = metric.get('ignore_index', 255)
    for split, group in datasets.items():
        for transform in group[0].pipeline.transforms:
            if hasattr(transform, 'ignore_index'):
                places[f'{split} pipeline, {type(transform).__name__}.ignore_index'] = transform.ignore_index
    return places


def check_normalisation(split: str, max_value: float, model: ModelSettings) -> Iterator[Problem]:
    """Find images of more than 8 bits that are normalised as if they had 8."""
    if model.mean and max_value > 255 and max(model.mean) < 256:
        message = f'pixel values up to {max_value:g} are normalised with a mean of {model.mean[0]:g}, for 8-bit images'
        hint = 'set mean and std of data_preprocessor to those of the images, see docs/own_dataset.md'
        yield Problem('WARNING', split, 'normalisation', message, hint)
