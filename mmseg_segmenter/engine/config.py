"""From command-line options to an mmengine Config ready for the Runner."""

import inspect
import os
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.fileio import list_dir_or_file
from mmseg.registry import DATASETS

from ..errors import MissingFileError, UserError


def load_config(
    path: str, work_dir: str | None = None, cfg_options: dict[str, Any] | None = None, launcher: str = 'none'
) -> Config:
    """Read a config and settle where its logs and checkpoints go.

    Args:
        path: config file.
        work_dir: default ``work_dir`` of the config, else ``work_dirs/<name>``.
        cfg_options: ``key.sub=value`` overrides.
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.

    Raises:
        FileNotFoundError: no such config.
    """
    if not os.path.isfile(path):
        raise MissingFileError(f'config {path} not found (working directory: {os.getcwd()})')
    cfg = Config.fromfile(path)
    cfg.launcher = launcher
    if cfg_options:
        cfg.merge_from_dict(cfg_options)
    name = os.path.splitext(os.path.basename(path))[0]
    cfg.work_dir = work_dir or cfg.get('work_dir') or os.path.join('work_dirs', name)
    return cfg


def find_checkpoint(path: str) -> str:
    """Fail on a mistyped checkpoint at once, not after the model is built.

    Raises:
        FileNotFoundError: a local path that does not exist.
    """
    if _is_missing(path):
        raise MissingFileError(f'checkpoint {path} not found (working directory: {os.getcwd()})')
    return path


def _is_missing(path: str) -> bool:
    """A local file that does not exist; an address is not looked up."""
    return '://' not in path and not os.path.isfile(os.path.expanduser(path))


def check_weights(cfg: Config) -> None:
    """Find missing files of pretrained weights before anything is built.

    Args:
        cfg: whole config, for training.

    Raises:
        FileNotFoundError: names the file and the entry of the config.
    """
    for place, checkpoint in _weights(cfg.get('model'), 'model'):
        if _is_missing(checkpoint):
            raise MissingFileError(
                f'{place}={checkpoint} not found (working directory: {os.getcwd()}); the header of the config says '
                'where it comes from'
            )
    if cfg.get('load_from'):
        find_checkpoint(cfg.load_from)


def _weights(node: Any, place: str) -> Iterator[tuple[str, str]]:
    """Places and paths of all weights that the parts of a model start from."""
    if isinstance(node, dict):
        if node.get('type') == 'Pretrained' and node.get('checkpoint'):
            yield f'{place}.checkpoint', node['checkpoint']
        for key, value in node.items():
            if key == 'pretrained' and isinstance(value, str):
                yield f'{place}.pretrained', value
            yield from _weights(value, f'{place}.{key}')
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from _weights(value, f'{place}[{i}]')


def check_datasets(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Find missing or empty dataset folders before anything is built.

    Left to itself a missing folder surfaces inside a registry call, and an
    empty one as "need at least one array to concatenate".

    Args:
        cfg: whole config.
        loaders: keys to look at, such as ``('train_dataloader',)``.

    Raises:
        FileNotFoundError: names the loader, the folder and what to change.
        ValueError: the image folder has no file with the expected suffix.
    """
    for loader in loaders:
        for dataset in _datasets((cfg.get(loader) or {}).get('dataset')):
            root, prefix = dataset.get('data_root') or '', dataset.get('data_prefix') or {}
            for kind, path in prefix.items():
                folder = os.path.join(root, path or '')
                if '://' in folder or (dataset.get('backend_args') or {}).get('backend', 'local') != 'local':
                    continue
                if not os.path.isdir(folder):
                    raise MissingFileError(
                        f'{loader}: dataset folder {folder} not found (working directory: {os.getcwd()}); put or link '
                        f'the dataset there, or set {loader}.dataset.data_root'
                    )
                suffix = _image_suffix(dataset)
                files = list_dir_or_file(folder, list_dir=False, suffix=suffix, recursive=True)
                if kind == 'img_path' and suffix and next(iter(files), None) is None:
                    raise UserError(f'{loader}: no image *{suffix} in {folder}; set {loader}.dataset.img_suffix')


def _datasets(dataset: Any) -> Iterator[Any]:
    """The datasets in a config, looking into wrappers such as ConcatDataset."""
    if not dataset:
        return
    wrapped = dataset.get('datasets') or dataset.get('dataset')
    if not wrapped:
        yield dataset
    for one in wrapped if isinstance(wrapped, list | tuple) else [wrapped]:
        yield from _datasets(one)


def _image_suffix(dataset: Any) -> str | None:
    """``img_suffix`` of the config, else the default of the dataset class."""
    parameter = inspect.signature(DATASETS.get(dataset.type).__init__).parameters.get('img_suffix')
    return dataset.get('img_suffix', None if parameter is None else parameter.default)


def decode_head(cfg: Config) -> Any:
    """The head whose predictions count: the last of a cascade, also inside ``SegTTAModel``; {} if there is none."""
    model = cfg.get('model') or {}
    head = model.get('module', model).get('decode_head') or {}
    return head[-1] if isinstance(head, list | tuple) else head


def evaluators(cfg: Config, split: str) -> list[Any]:
    """The metrics of ``val_evaluator`` or ``test_evaluator``, which may be one, several or none."""
    metrics = cfg.get(f'{split}_evaluator') or []
    return list(metrics) if isinstance(metrics, list | tuple) else [metrics]


def enable_tta(cfg: Config) -> None:
    """Test with the multi-scale and flip pipeline of the config.

    Raises:
        ValueError: the config has no ``tta_model`` or ``tta_pipeline``.
    """
    missing = [key for key in ('tta_model', 'tta_pipeline') if cfg.get(key) is None]
    if missing:
        raise UserError(f'--tta: {cfg.filename} has no {" and no ".join(missing)}')
    for dataset in _datasets(cfg.test_dataloader.dataset):
        dataset.pipeline = cfg.tta_pipeline
    cfg.tta_model.module = cfg.model
    cfg.model = cfg.tta_model


def enable_drawing(cfg: Config, show_dir: str | None = None, show: bool = False, wait_time: float = 2.0) -> None:
    """Draw annotation and prediction side by side for every test image.

    Args:
        cfg: whole config.
        show_dir: folder for the pictures.
        show: open a window.
        wait_time: seconds that a window stays open.

    Raises:
        ValueError: the config has no visualization hook.
    """
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise UserError("--show and --show-dir need default_hooks.visualization=dict(type='SegVisualizationHook')")
    hook.update(draw=True, interval=1)
    if show:
        hook.update(show=True, wait_time=wait_time)
    if show_dir:
        cfg.setdefault('visualizer', dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')]))
        cfg.visualizer.save_dir = show_dir


def save_predictions(cfg: Config, out_dir: str) -> None:
    """Write label maps as PNG files, in the label convention of the dataset.

    Raises:
        ValueError: no ``IoUMetric``, which writes them, in ``test_evaluator``,
            or more classes than its 8 bits hold.
    """
    writers = [evaluator for evaluator in evaluators(cfg, 'test') if evaluator.type == 'IoUMetric']
    if not writers:
        raise UserError(f'--out: test_evaluator of {cfg.filename} has no IoUMetric')
    classes = decode_head(cfg).get('num_classes', 0)
    # reduce_zero_label counts the label maps from 1
    limit = 256 - any(dataset.get('reduce_zero_label', False) for dataset in _datasets(cfg.test_dataloader.dataset))
    if classes > limit:
        raise UserError(f'--out: IoUMetric writes 8-bit label maps, for {limit} classes at most; num_classes={classes}')
    for writer in writers:
        writer.update(output_dir=out_dir, keep_results=True)
