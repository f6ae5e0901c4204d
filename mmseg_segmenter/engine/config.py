"""From command-line options to an mmengine ``Config`` ready for the ``Runner``."""

import argparse
import os
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.utils import import_modules_from_strings

from ..errors import MissingFileError, NotAFileError, UserError
from ..files import check_folder
from .checks import datasets


def load_config(
    path: str,
    work_dir: str | None = None,
    cfg_options: Mapping[str, Any] | Sequence[str] | None = None,
    launcher: str = 'none',
) -> Config:
    """Read a config and settle where its logs and checkpoints go.

    Args:
        path: config file.
        work_dir: folder for logs and checkpoints; default: ``work_dir`` of the config, else ``work_dirs/<name>``.
        cfg_options: values by dotted key that override those of the file, or as :func:`parse_options` takes them.
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.

    Raises:
        MissingFileError: no such config.
        NotAFileError: a folder.
        UserError: the file cannot be read as a config, or an option does not fit it; names file and line, or option.
    """
    if os.path.isdir(path):
        raise NotAFileError(f'config {path} is a folder, expected a file')
    if not os.path.isfile(path):
        raise MissingFileError(f'config {path} not found (working directory: {os.getcwd()})')
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is a program of the user's: anything can go wrong in it
        raise UserError(f'config {path}: {_reason(error)}') from error
    cfg.launcher = launcher
    options = cfg_options if isinstance(cfg_options, Mapping) else parse_options(cfg_options)
    for key, value in options.items():
        try:
            cfg.merge_from_dict({key: value})
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(f'--cfg-options {key}={value!r} does not fit {path}: {error}') from error
    if any(key.split('.')[0] == 'custom_imports' for key in options):  # mmengine imports those of the file only
        try:
            import_modules_from_strings(**cfg.custom_imports)
        except ImportError as error:
            raise UserError(f'--cfg-options: {_reason(error)}') from error
    name = os.path.splitext(os.path.basename(path))[0]
    cfg.work_dir = work_dir or cfg.get('work_dir') or os.path.join('work_dirs', name)
    return cfg


def parse_options(options: Sequence[str] | None) -> dict[str, Any]:
    """Return the values of ``--cfg-options`` by their dotted keys.

    Args:
        options: ``KEY=VALUE``, the values written as for mmengine's ``DictAction``.

    Raises:
        UserError: an option is not of that form.
    """
    for option in options or ():
        key, equals, _ = option.partition('=')
        if not equals or not all(key.split('.')):
            raise UserError(f'--cfg-options {option}: expected KEY=VALUE, such as model.test_cfg.mode=whole')
    parser = argparse.ArgumentParser()
    parser.add_argument('options', nargs='*', action=DictAction)
    try:
        return dict(parser.parse_args(list(options or ())).options or {})
    except AssertionError as error:  # unbalanced brackets
        raise UserError(f'--cfg-options {" ".join(options or ())}: {error}') from None


def _reason(error: Exception) -> str:
    """Return why a config could not be read, with file and line.

    Raises:
        Exception: ``error`` itself, if it comes from a module that the config imports and that was found.
    """
    if isinstance(error, SyntaxError):  # mmengine's own text, which ends in "(<unknown>, line 3)"
        return str(error).replace('<unknown>, ', '')
    frames = traceback.extract_tb(error.__traceback__)
    if any(frame.name == 'import_modules_from_strings' for frame in frames) or isinstance(error, ImportError):
        if not isinstance(error, ImportError):
            raise error
        root: BaseException = error
        while root.__context__ is not None:  # mmengine puts the whole sys.path on top of what is missing
            root = root.__context__
        return f'custom_imports failed: {root}'
    places = [f'{frame.filename}, line {frame.lineno}: ' for frame in frames if frame.name == '<module>']
    return f'{places[-1] if places else ""}{type(error).__name__}: {error}'


def decode_head(cfg: Config) -> Any:
    """Return the head that predicts: the last of a cascade, also inside ``SegTTAModel``; {} if there is none."""
    model = cfg.get('model') or {}
    head = model.get('module', model).get('decode_head') or {}
    return head[-1] if isinstance(head, list | tuple) else head


def ignore_index(cfg: Config) -> int:
    """Return the label that the loss of the model ignores."""
    return int(decode_head(cfg).get('ignore_index', 255))


def data_preprocessor(cfg: Config) -> Any:
    """Return the settings of the data preprocessor, also those inside ``SegTTAModel``; None if there are none."""
    model = cfg.get('model') or {}
    return model.get('module', model).get('data_preprocessor') or cfg.get('data_preprocessor')


def loaded_channel_order(cfg: Config) -> str:
    """Return the channel order of loaded images: BGR as OpenMMLab's loaders, unless the preprocessor expects RGB."""
    return 'rgb' if (data_preprocessor(cfg) or {}).get('rgb_to_bgr') else 'bgr'


def evaluators(cfg: Config, split: str) -> list[Any]:
    """Return the metrics of ``val_evaluator`` or ``test_evaluator``, which may be one, several or none."""
    metrics = cfg.get(f'{split}_evaluator') or []
    return list(metrics) if isinstance(metrics, list | tuple) else [metrics]


def enable_tta(cfg: Config) -> None:
    """Test with the multi-scale and flip pipeline of the config.

    Args:
        cfg: whole config; ``model`` and ``test_dataloader`` are changed.

    Raises:
        UserError: the config has no ``tta_model`` or ``tta_pipeline``.
    """
    check_tta(cfg, '--tta')
    for dataset in datasets(cfg.test_dataloader.dataset):
        dataset.pipeline = cfg.tta_pipeline
    cfg.tta_model.module = cfg.model
    cfg.model = cfg.tta_model


def check_tta(cfg: Config, option: str) -> None:
    """Find out whether a config has what test-time augmentation needs.

    Args:
        cfg: whole config.
        option: name of the option that asks for it, for the message.

    Raises:
        UserError: the config has no ``tta_model`` or no ``tta_pipeline``.
    """
    missing = [key for key in ('tta_model', 'tta_pipeline') if cfg.get(key) is None]
    if missing:
        raise UserError(f'{option}: {cfg.filename} has no {" and no ".join(missing)}')


def enable_drawing(cfg: Config, show_dir: str | None = None, show: bool = False, wait_time: float = 2.0) -> None:
    """Draw image, annotation and prediction side by side for every test image.

    ``SegmenterVisualizationHook`` replaces another visualization hook of the config.

    Args:
        cfg: whole config; ``default_hooks.visualization`` is changed.
        show_dir: folder for the pictures.
        show: open a window.
        wait_time: seconds that a window stays open.

    Raises:
        FileAccessError: cannot write in ``show_dir``.
    """
    hook = (cfg.get('default_hooks') or {}).get('visualization') or {}
    if str(hook.get('type')).rpartition('.')[2] != 'SegmenterVisualizationHook':
        hook = dict(type='mmseg.SegmenterVisualizationHook')
    hook = {**hook, 'show': show, 'wait_time': wait_time}
    if show_dir:
        check_folder(show_dir)
        hook['show_dir'] = show_dir
    cfg.default_hooks = {**(cfg.get('default_hooks') or {}), 'visualization': hook}


def save_predictions(cfg: Config, out_dir: str) -> None:
    """Have a test write its label maps as PNG files, with the labels of the dataset's own annotations.

    Args:
        cfg: whole config.
        out_dir: folder for the files; it is made.

    Raises:
        UserError: ``test_evaluator`` has no ``IoUMetric``, which writes them, or there are more classes than 8 bits
            hold.
        FileAccessError: cannot write in ``out_dir``.
    """
    writers = [evaluator for evaluator in evaluators(cfg, 'test') if evaluator.type == 'IoUMetric']
    if not writers:
        raise UserError(f'--out: test_evaluator of {cfg.filename} has no IoUMetric')
    classes = decode_head(cfg).get('num_classes', 0)
    # With reduce_zero_label the label maps count from 1.
    limit = 256 - any(dataset.get('reduce_zero_label', False) for dataset in datasets(cfg.test_dataloader.dataset))
    if classes > limit:
        raise UserError(f'--out: IoUMetric writes 8-bit label maps, for {limit} classes at most; num_classes={classes}')
    check_folder(out_dir)
    for writer in writers:
        writer.update(output_dir=out_dir, keep_results=True)
