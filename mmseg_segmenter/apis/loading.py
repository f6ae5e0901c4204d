"""From a config and a checkpoint to a model and its preprocessing."""

import glob
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from mmcv.transforms import Compose, LoadImageFromFile
from mmengine.config import Config, ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.runner import load_checkpoint
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import DATASETS, MODELS, TRANSFORMS

from .. import engine
from ..datasets import LoadImage
from ..errors import MissingFileError, UserError
from ..models.load_report import check_all_loaded, report_loading
from ..visualization.palette import default_palette
from .prediction import Classes

Transform = Callable[[dict[str, Any]], Any]


def load_config(
    config: str | os.PathLike[str] | Config,
    checkpoint: str | os.PathLike[str] | None,
    cfg_options: Mapping[str, Any] | None = None,
) -> tuple[Config, str]:
    """Return a config, and the path or URL of the weights.

    Args:
        config: config file, config, or folder of a run.
        checkpoint: path or URL; may be None for a folder.
        cfg_options: values by dotted key that override those of the config.

    Raises:
        MissingFileError: no such file, or nothing usable in the folder.
        UserError: no checkpoint is given, the folder has several configs, the
            file is no config, or an option does not fit it.
    """
    if isinstance(config, Config):
        path, cfg = str(config.filename), config.copy()
        cfg.merge_from_dict(dict(cfg_options or {}))
    else:
        path = os.path.expanduser(os.fspath(config))
        if os.path.isdir(path):
            checkpoint = checkpoint or _newest_checkpoint(path)
            path = _only_config(path)
        cfg = engine.load_config(path, cfg_options=cfg_options or {})
    if checkpoint is None:
        raise UserError(f'{path}: no checkpoint given; pass its path or URL')
    if cfg.get('model') is None:
        raise UserError(f'{path} has no model')
    return cfg, engine.find_checkpoint(os.fspath(checkpoint))


def _only_config(folder: str) -> str:
    configs = sorted(glob.glob(os.path.join(glob.escape(folder), '*.py')))
    if len(configs) != 1:
        found = ', '.join(map(os.path.basename, configs)) or 'none'
        raise UserError(f'{folder}: expected one config (*.py), found {found}; name the file')
    return configs[0]


def _newest_checkpoint(folder: str) -> str:
    """Return the best checkpoint of a run, else the last, else the only one."""
    best = glob.glob(os.path.join(glob.escape(folder), 'best_*.pth'))
    if best:
        return max(best, key=os.path.getmtime)
    pointer = os.path.join(folder, 'last_checkpoint')
    if os.path.isfile(pointer):
        with open(pointer, encoding='utf-8') as file:
            name = os.path.basename(file.read().strip())  # the folder may have been moved
        if os.path.isfile(os.path.join(folder, name)):
            return os.path.join(folder, name)
    files = glob.glob(os.path.join(glob.escape(folder), '*.pth'))
    if len(files) != 1:
        raise MissingFileError(f'{folder}: expected a checkpoint (*.pth), found {len(files) or "none"}; name the file')
    return files[0]


def build_model(cfg: Config, window_batch_size: int | None = None) -> Any:
    """Build the segmentor of a config without its pretrained weights.

    mmseg's ``EncoderDecoder`` becomes a :class:`Segmenter`, which gives the
    same labels from the same weights, faster.

    Raises:
        UserError: ``window_batch_size`` is not positive, or the model does
            not fit the config.
    """
    model = cfg.model
    model.pop('pretrained', None)
    if isinstance(model.get('backbone'), dict):
        model.backbone.pop('init_cfg', None)
        model.backbone.pop('pretrained', None)
    model.train_cfg = None
    if model.type == 'EncoderDecoder':
        model.type = 'Segmenter'
    if window_batch_size is not None:
        model.setdefault('test_cfg', ConfigDict(mode='whole'))
        model.test_cfg.window_batch_size = window_batch_size
    return revert_sync_batchnorm(MODELS.build(model))


def load_weights(model: Any, cfg: Config, checkpoint: str, allow_partial: bool) -> Classes:
    """Load a checkpoint and return the classes that it, or else the config, names.

    Args:
        model: segmentor of ``cfg``.
        cfg: whole config.
        checkpoint: path or URL.
        allow_partial: accept a checkpoint that lacks tensors of the model.

    Raises:
        MissingFileError: no such file.
        UserError: damaged, refused, or of another model.
    """
    report_loading(model)
    content = load_checkpoint(model, checkpoint, map_location='cpu', logger='silent')
    if not allow_partial:
        check_all_loaded(model)
    meta = content.get('meta') or {}
    meta = meta.get('dataset_meta') or _dataset_meta(cfg)
    num_classes = max(engine.decode_head(cfg).get('num_classes') or 0, 2)
    names = tuple(map(str, meta.get('classes') or [f'class {i}' for i in range(num_classes)]))
    if len(names) != num_classes:
        raise UserError(
            f'{checkpoint}: {len(names)} class names in dataset_meta, num_classes={num_classes} in the head; expected '
            'the same number'
        )
    palette = meta.get('palette')
    palette = default_palette(num_classes) if palette is None else np.array(palette, np.uint8)
    if palette.shape != (num_classes, 3):
        raise UserError(f'{checkpoint}: palette of shape {palette.shape}, expected ({num_classes}, 3)')
    return Classes(names, palette)


def _dataset_meta(cfg: Config) -> dict[str, Any]:
    """Return classes and palette of the test dataset in the config."""
    dataset = _test_dataset(cfg)
    known = getattr(DATASETS.get(dataset['type']), 'METAINFO', {}) if dataset.get('type') else {}
    return {**known, **(dataset.get('metainfo') or {})}


def build_tta(cfg: Config, model: Any) -> Any:
    """Wrap a model for test-time augmentation.

    Raises:
        UserError: the config has no ``tta_model`` or no ``tta_pipeline``.
    """
    engine.check_tta(cfg, 'tta')
    return MODELS.build({**cfg.tta_model, 'module': model})


def test_transforms(cfg: Config, tta: bool = False) -> tuple[Transform | None, Transform]:
    """Return the loading and the preprocessing of the test pipeline, without annotations.

    Args:
        cfg: whole config.
        tta: take ``tta_pipeline``.

    Returns:
        The transform that loads an image file, None where it is plain colour
        loading (then :func:`mmseg_segmenter.apis.read_image` does better), and
        the transforms that follow.

    Raises:
        UserError: the config has no test pipeline, or it does not begin with
            loading an image.
    """
    pipeline = cfg.get('tta_pipeline') if tta else _test_dataset(cfg).get('pipeline') or cfg.get('test_pipeline')
    if not pipeline:
        raise UserError(f'{cfg.filename} has no test_pipeline')
    first, *rest = _without_annotations(pipeline)
    kind = TRANSFORMS.get(first['type']) if isinstance(first['type'], str) else first['type']
    if kind is None or not issubclass(kind, LoadImageFromFile):
        raise UserError(f'{cfg.filename}: the test pipeline begins with {first["type"]}, expected LoadImageFromFile')
    plain = (
        kind in (LoadImageFromFile, LoadImage)
        and first.get('color_type', 'color') == 'color'
        and not first.get('to_float32')
    )
    return None if plain else TRANSFORMS.build(first), Compose(rest)


def _test_dataset(cfg: Config) -> Any:
    """Return the settings of the test dataset, the first one of several; {} if there is none."""
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader') or {}
    return next(engine.datasets(loader.get('dataset')), {})


def _without_annotations(transforms: Any) -> Any:
    """Drop the transforms that load annotations, also inside of ``TestTimeAug``."""
    if isinstance(transforms, list | tuple):
        kept = [_without_annotations(one) for one in transforms if not _loads_annotations(one)]
        return [one for one in kept if one != []]
    if isinstance(transforms, dict) and 'transforms' in transforms:
        return {**transforms, 'transforms': _without_annotations(transforms['transforms'])}
    return transforms


def _loads_annotations(transform: Any) -> bool:
    kind = transform.get('type') if isinstance(transform, dict) else None
    kind = TRANSFORMS.get(kind) if isinstance(kind, str) else kind
    return inspect.isclass(kind) and issubclass(kind, LoadAnnotations)


def loading_transforms(pipeline: Any) -> list[Any]:
    """Return the transforms of a pipeline that load an image and its annotation, without those in between."""
    return [pipeline[0], *(one for one in pipeline if _loads_annotations(one))]


class AnnotationFormat(NamedTuple):
    """How the test dataset of a config names and numbers its annotations.

    Attributes:
        image_suffix: end of the names of images.
        suffix: end of the names of label maps, in its place.
        reduce_zero_label: label 0 is no class, and the others are one too large.
    """

    image_suffix: str
    suffix: str
    reduce_zero_label: bool


def annotation_format(cfg: Config) -> AnnotationFormat:
    """Return how the test dataset of a config stores annotations."""
    dataset = _test_dataset(cfg)
    kind = dataset.get('type', 'BaseSegDataset')
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    defaults = dict(img_suffix='.jpg', seg_map_suffix='.png', reduce_zero_label=False)
    for ancestor in reversed(inspect.getmro(kind)):  # a subclass hands on what it does not name
        for key, parameter in inspect.signature(vars(ancestor).get('__init__', object)).parameters.items():
            if key in defaults and parameter.default is not parameter.empty:
                defaults[key] = parameter.default
    values = {**defaults, **{key: dataset[key] for key in defaults if key in dataset}}
    loaders = [one for one in dataset.get('pipeline') or () if _loads_annotations(one)]
    reduce = values['reduce_zero_label'] or any(one.get('reduce_zero_label') for one in loaders)
    return AnnotationFormat(values['img_suffix'], values['seg_map_suffix'], bool(reduce))
