"""Find what is wrong with a config before anything is built from it, and say so in the user's terms."""

import inspect
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.config import Config
from mmengine.fileio import list_dir_or_file
from mmengine.registry import build_functions
from mmengine.visualization import vis_backend
from mmseg.registry import DATASETS, OPTIMIZERS

from ..errors import MissingFileError, MissingPackageError, NotAFileError, UserError
from ..files import check_folder
from .work_dir import check_start, lock_work_dir

# The variable that each launcher sets and that mmengine reads first.
_LAUNCHER_VARIABLES = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_LOCAL_RANK'}


@contextmanager
def registry_errors(cfg: Config) -> Iterator[None]:
    """Turn the failure of a registry to build a part of a config into a ``UserError``.

    That is an unknown ``type``, or arguments that the constructor, or a constructor that it hands them to, does not
    have, or a backend of the visualizer whose package is not installed. Any other error inside a constructor, or
    later, passes unchanged.

    Args:
        cfg: whole config; its file is named.

    Raises:
        UserError: names the config file and the unknown class or argument.
        MissingPackageError: names the config file and the package.
    """
    try:
        yield
    except ImportError as error:
        if traceback.extract_tb(error.__traceback__)[-1].filename != vis_backend.__file__:
            raise
        raise MissingPackageError(f'{cfg.filename}: {error}') from error
    except (KeyError, TypeError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        handed_on = last.name == '__init__' and '__init__() got an unexpected keyword argument' in str(error)
        if last.filename != build_functions.__file__ and not handed_on:
            raise
        reason = str(error.args[0]).partition('. Please check')[0]
        raise UserError(f'{cfg.filename}: {reason}') from error


def check_run(cfg: Config) -> None:
    """Find out whether a run can start: the launcher has set its variables, and the work dir can be written.

    Args:
        cfg: whole config.

    Raises:
        UserError: the process was not started by the launcher.
        FileAccessError: no folder can be made or written to at ``work_dir``.
    """
    launcher = cfg.get('launcher', 'none')
    variable = _LAUNCHER_VARIABLES.get(launcher)
    if variable and variable not in os.environ:
        raise UserError(
            f'--launcher {launcher}: the environment has no {variable}; start the processes with torchrun, srun or '
            'mpirun (see tools/dist_train.sh and tools/slurm_train.sh), or leave out --launcher'
        )
    check_folder(cfg.work_dir)


def check_optimizer(cfg: Config) -> None:
    """Find out whether the optimizer of a config exists, which mmengine does not check.

    Args:
        cfg: whole config, for training.

    Raises:
        UserError: names the unknown class.
    """
    kind = ((cfg.get('optim_wrapper') or {}).get('optimizer') or {}).get('type')
    if isinstance(kind, str) and OPTIMIZERS.get(kind) is None:
        raise UserError(f'{cfg.filename}: optim_wrapper.optimizer.type={kind!r} is not a registered optimizer')


def guard_work_dir(cfg: Config) -> None:
    """Refuse a training whose work dir is in use, or does not fit ``resume``, before anything is written there.

    Args:
        cfg: whole config.

    Raises:
        UserError: as :func:`~.work_dir.lock_work_dir` and :func:`~.work_dir.check_start`.
    """
    launcher = cfg.get('launcher', 'none')
    # mmengine reads the rank within the machine from mpi.
    variable = 'OMPI_COMM_WORLD_RANK' if launcher == 'mpi' else _LAUNCHER_VARIABLES.get(launcher, '')
    if int(os.environ.get(variable) or 0):
        return  # not the first process
    lock_work_dir(cfg.work_dir)
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    if hook.get('out_dir') is None:
        template = hook.get('filename_tmpl') or ('epoch_{}.pth' if hook.get('by_epoch', True) else 'iter_{}.pth')
        check_start(cfg.work_dir, cfg.get('resume'), cfg.get('load_from'), template=template)


def find_checkpoint(path: str) -> str:
    """Return the path of a checkpoint; a mistyped one fails at once, not after the model is built.

    Args:
        path: local file, or a URL, which is not looked up.

    Raises:
        MissingFileError: a local path that does not exist.
        NotAFileError: a folder.
    """
    _check_weights_file(path, f'checkpoint {path}')
    return path


def check_weights(cfg: Config) -> None:
    """Find missing files of pretrained weights before anything is built.

    Args:
        cfg: whole config, for training.

    Raises:
        MissingFileError: names the file and the entry of the config.
        NotAFileError: names the folder and the entry of the config.
    """
    for place, checkpoint in _weights(cfg.get('model'), 'model'):
        _check_weights_file(checkpoint, f'{place}={checkpoint}', '; the header of the config says where it comes from')
    if cfg.get('load_from') and not (cfg.get('runner_type') == 'ShardedRunner' and os.path.isdir(cfg.load_from)):
        find_checkpoint(cfg.load_from)


def _check_weights_file(path: str, name: str, advice: str = '') -> None:
    if '://' in path:
        return
    local = os.path.expanduser(path)
    if os.path.isdir(local):
        sharded = os.path.isfile(os.path.join(local, 'meta.pth'))
        advice = '; of a training with --shard, tools/model_converters/sharded2mmseg.py makes one' if sharded else ''
        raise NotAFileError(f'{name} is a folder, expected a file{advice}')
    if not os.path.isfile(local):
        raise MissingFileError(f'{name} not found (working directory: {os.getcwd()}){advice}')


def _weights(node: Any, place: str) -> Iterator[tuple[str, str]]:
    """Yield the places and paths of all weights that the parts of a model start from."""
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

    Without this check a missing folder fails inside a registry call, and an empty one with "need at least one array
    to concatenate".

    Args:
        cfg: whole config.
        loaders: keys of the data loaders, such as ``('train_dataloader',)``.

    Raises:
        MissingFileError: names the loader, the folder and what to change.
        UserError: the image folder has no file with the expected suffix, ``ann_file`` lists no sample, or a dataset
            class is unknown.
    """
    for loader in loaders:
        for dataset in datasets((cfg.get(loader) or {}).get('dataset')):
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
                suffix = _image_suffix(dataset, loader)
                files = list_dir_or_file(folder, list_dir=False, suffix=suffix, recursive=True)
                if kind == 'img_path' and suffix and next(iter(files), None) is None:
                    raise UserError(f'{loader}: no image *{suffix} in {folder}; set {loader}.dataset.img_suffix')
            if dataset.get('ann_file'):
                _check_list(os.path.join(root, dataset.ann_file), loader)


def _check_list(path: str, loader: str) -> None:
    """Refuse a list of samples that is missing or empty: a sampler of no samples never ends."""
    if '://' in path or os.path.isdir(path):
        return
    if not os.path.isfile(path):
        raise MissingFileError(
            f'{loader}: list of samples {path} not found (working directory: {os.getcwd()}); set '
            f'{loader}.dataset.ann_file'
        )
    with open(path, 'rb') as file:
        if not any(line.strip() for line in file):
            raise UserError(f'{loader}: {path} lists no sample, expected at least 1; set {loader}.dataset.ann_file')


def datasets(dataset: Any) -> Iterator[Any]:
    """Yield the datasets of a loader's ``dataset`` entry, also those inside wrappers such as ``ConcatDataset``."""
    if not dataset:
        return
    wrapped = dataset.get('datasets') or dataset.get('dataset')
    if not wrapped:
        yield dataset
    for one in wrapped if isinstance(wrapped, list | tuple) else [wrapped]:
        yield from datasets(one)


def _image_suffix(dataset: Any, loader: str) -> str | None:
    """Return ``img_suffix`` of the config, else the default of the dataset class."""
    cls = DATASETS.get(dataset.type)
    if cls is None:
        raise UserError(f'{loader}.dataset.type={dataset.type!r} is not a registered dataset')
    parameter = inspect.signature(cls.__init__).parameters.get('img_suffix')
    return dataset.get('img_suffix', None if parameter is None else parameter.default)
