"""Train models that are larger than the memory of one GPU: each process keeps a share of the state (torch's FSDP2)."""

import io
import math
import os
import pickle
import shutil
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import Hook
from mmengine.model import revert_sync_batchnorm
from mmengine.runner import Runner
from mmengine.runner.checkpoint import _load_checkpoint, _load_checkpoint_to_model
from mmseg.registry import RUNNERS
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from ..checkpoints.integrity import DamagedError, check_pickle
from ..checkpoints.read import read
from ..errors import UserError, describe
from ..files import check_folder
from .guards import FiniteLossHook, first_not_finite

# What a checkpoint has besides the shards: iteration, schedules, log, and the settings of the optimizer.
META = 'meta.pth'
_UNFINISHED = '.unfinished'
# Bytes of an index; one of 1,000 tensors in 64 parts has 10 MB.
_LARGEST_INDEX = 100_000_000


def shard_model(
    model: nn.Module,
    param_dtype: str | None = None,
    reduce_dtype: str | None = None,
    reshard_after_forward: bool = True,
) -> None:
    """Share the parameters of a model among the processes, in place.

    Each block of the backbone, and of the decode head if it has any, is gathered before it is used and given up
    afterwards; the rest of the model is gathered once per iteration.

    Args:
        model: segmentor, with ``backbone.layers`` of blocks.
        param_dtype: to gather and compute in, such as ``'bfloat16'``; default: that of the parameters. The shares, and
            with them the optimizer, keep their precision.
        reduce_dtype: to average gradients in; default: ``param_dtype``.
        reshard_after_forward: give up blocks between forward and backward pass, for less memory and half as much
            traffic again.

    Raises:
        UserError: the backbone has no blocks, or a name is not one of a dtype.
    """
    blocks = getattr(getattr(model, 'backbone', None), 'layers', None)
    if not isinstance(blocks, nn.ModuleList):
        raise UserError(
            f'sharding needs a backbone with layers, found {type(getattr(model, "backbone", model)).__name__}'
        )
    head_blocks = getattr(getattr(model, 'decode_head', None), 'layers', None)
    settings: dict[str, Any] = dict(
        mesh=init_device_mesh(get_device(), (dist.get_world_size(),)),
        mp_policy=MixedPrecisionPolicy(_dtype('param_dtype', param_dtype), _dtype('reduce_dtype', reduce_dtype)),
    )
    for block in [*blocks, *(head_blocks if isinstance(head_blocks, nn.ModuleList) else ())]:
        fully_shard(block, reshard_after_forward=reshard_after_forward, **settings)
    fully_shard(model, reshard_after_forward=False, **settings)


def _dtype(option: str, name: str | None) -> torch.dtype | None:
    dtype = None if name is None else getattr(torch, str(name), None)
    if name is not None and not isinstance(dtype, torch.dtype):
        raise UserError(f"sharding.{option}={name!r}, expected the name of a dtype, such as 'bfloat16'")
    return dtype


def enable_sharding(cfg: Config) -> None:
    """Train with :class:`ShardedRunner`.

    Args:
        cfg: whole config; ``runner_type`` is changed.

    Raises:
        UserError: the processes were not started by a launcher, or the config averages weights (EMA).
    """
    if cfg.launcher == 'none':
        raise UserError('--shard needs several processes: start them with tools/dist_train.sh')
    if any(hook.get('type') == 'EMAHook' for hook in cfg.get('custom_hooks') or []):
        raise UserError('--shard: EMAHook keeps a whole copy of the model in each process; remove it from custom_hooks')
    cfg.runner_type = 'ShardedRunner'


@RUNNERS.register_module()
class ShardedRunner(Runner):
    """Train with a share of parameters, gradients and optimizer state in each process.

    Set ``runner_type='ShardedRunner'``. ``sharding`` in the config has the arguments of :func:`shard_model`. A
    checkpoint is a folder with one file per process, from which any number of processes can continue;
    :func:`consolidate` makes an ordinary one of it.
    """

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Initialise the weights, in the memory of the CPU, and share them.

        Args:
            model_wrapper_cfg: not used; it is for DDP.
            model: segmentor.
        """
        self.model = revert_sync_batchnorm(model)
        super()._init_model_weights()
        if self._load_from and not os.path.isdir(self._load_from):
            _load_checkpoint_to_model(self.model, _load_checkpoint(self._load_from, map_location='cpu'))
        shard_model(self.model, **self.cfg.get('sharding', {}))
        self.model.data_preprocessor.to(get_device())
        return self.model

    def _init_model_weights(self) -> None:
        """Do nothing: the weights were initialised before they were shared."""

    def register_hooks(self, *args: Any, **kwargs: Any) -> None:
        """Register the hooks of the config, and one that gathers the model for validations."""
        super().register_hooks(*args, **kwargs)
        self.register_hook(_GatherHook())

    def save_checkpoint(
        self, out_dir: str, filename: str, *args: Any, save_optimizer: bool = True, meta: Any = None, **kwargs: Any
    ) -> None:
        """Save a folder: each process writes its share. All processes must call this.

        Args:
            out_dir: local folder.
            filename: of the checkpoint in it.
            args: as mmengine's ``Runner``.
            save_optimizer: with the state of the optimizer.
            meta: as mmengine's ``Runner``.
            kwargs: as mmengine's ``Runner``.

        Raises:
            UserError: weights are not finite, and the training has a :class:`FiniteLossHook`.
        """
        # The hook cannot look at the weights itself: mmengine does not save them here. All processes end together.
        names = [name for name in all_gather_object(first_not_finite(self.model.state_dict())) if name is not None]
        for hook in self.hooks:
            if isinstance(hook, FiniteLossHook):
                hook.check_weights(self, names[0] if names else None)
        folder = os.path.join(out_dir, filename)
        unfinished = folder + _UNFINISHED
        if is_main_process():
            shutil.rmtree(unfinished, ignore_errors=True)
            check_folder(unfinished)
        dist.barrier()
        optimizer = get_optimizer_state_dict(self.model, self.optim_wrapper.optimizer) if save_optimizer else {}
        save(self._tensors(optimizer), checkpoint_id=unfinished)
        meta = dict(
            meta or {},
            param_groups=optimizer.get('param_groups', []),
            state_dict_metadata=self.model.state_dict()._metadata,
        )
        model, self.model = self.model, nn.Module()  # mmengine writes the rest
        try:
            super().save_checkpoint(unfinished, META, *args, save_optimizer=False, meta=meta, **kwargs)
        finally:
            self.model = model
        dist.barrier()
        if is_main_process():
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(unfinished, folder)
        dist.barrier()

    def load_checkpoint(
        self,
        filename: str,
        map_location: str | Callable[..., Any] = 'cpu',
        strict: bool = False,
        revise_keys: Any = (),
    ) -> dict[str, Any]:
        """Load a folder that :meth:`save_checkpoint` wrote, with any number of processes.

        The weights of an ordinary checkpoint were loaded before the model was shared.

        Args:
            filename: folder, or checkpoint of an unsharded model.
            map_location: not used.
            strict: not used.
            revise_keys: not used.

        Returns:
            What the checkpoint has besides the weights.

        Raises:
            UserError: a training cannot continue from an ordinary checkpoint.
        """
        if not os.path.isdir(filename):
            if self._resume:
                raise UserError(
                    f'--resume: {filename} is of a training without --shard; expected a folder. To start with its '
                    'weights, leave out --resume and set load_from'
                )
            return {}
        checkpoint: dict[str, Any] = read(os.path.join(filename, META), map_location='cpu').content
        optimizer: dict[str, Any] = {}
        groups = checkpoint['meta'].pop('param_groups', [])
        if self._resume and groups:
            optimizer = get_optimizer_state_dict(self.model, self.optim_wrapper.optimizer)
        load(self._tensors(optimizer), storage_reader=SafeReader(filename))  # in place
        if optimizer:
            set_optimizer_state_dict(
                self.model, self.optim_wrapper.optimizer, dict(state=optimizer['state'], param_groups=groups)
            )
            checkpoint['optimizer'] = self.optim_wrapper.state_dict()  # which resume() loads once more
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        return checkpoint

    def _tensors(self, optimizer: dict[str, Any]) -> dict[str, Tensor]:
        """Return the tensors of the model, and of the state of its optimizer, by name."""
        tensors = {f'model.{name}': value for name, value in self.model.state_dict().items()}
        for name, state in optimizer.get('state', {}).items():
            tensors |= {f'optimizer.{name}.{key}': value for key, value in state.items() if isinstance(value, Tensor)}
        return tensors


class _GatherHook(Hook):
    """Keep the whole model in each process during a validation.

    The processes validate images of different sizes, with different numbers of windows. If they gathered a block each
    time that they use it, they would wait for one another forever.
    """

    def before_val_epoch(self, runner: Runner) -> None:
        for module in _sharded_modules(runner.model):
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        reshard = runner.cfg.get('sharding', {}).get('reshard_after_forward', True)
        for module in _sharded_modules(runner.model):
            module.set_reshard_after_forward(reshard and module is not runner.model, recurse=False)
            module.reshard()


def _sharded_modules(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def consolidate(folder: str) -> dict[str, Any]:
    """Return the checkpoint of a sharded training as an ordinary one, without the state of the optimizer.

    Args:
        folder: of :class:`ShardedRunner`.

    Raises:
        UserError: the folder is not one.
    """
    path = os.path.join(folder, META)
    if not os.path.isfile(path):
        raise UserError(f'{folder}: expected a checkpoint of a training with --shard, found no {META}')
    checkpoint: dict[str, Any] = read(path, map_location='cpu').content
    reader = SafeReader(folder)
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if name.startswith('model.')
    }
    try:
        load(tensors, storage_reader=reader, no_dist=True)
    except CheckpointException as error:
        reason = next(iter(error.failures.values()))[0]
        raise UserError(f'{folder}: cannot read the sharded checkpoint: {describe(reason)}') from None
    state: Any = OrderedDict((name.removeprefix('model.'), value) for name, value in tensors.items())
    try:
        state._metadata = checkpoint['meta'].pop('state_dict_metadata')
        del checkpoint['meta']['param_groups']
    except (KeyError, TypeError, AttributeError):
        raise UserError(f'{path}: expected the meta.pth of a training with --shard') from None
    return {**checkpoint, 'state_dict': state}


# Classes of an index whose entries are tensors. Other objects would be unpickled without restriction.
_INDEX = {
    ('pathlib', 'PosixPath'),
    ('pathlib', 'PurePosixPath'),
    ('pathlib', 'WindowsPath'),
    ('pathlib', 'PureWindowsPath'),
    ('torch', 'Size'),
    ('torch.serialization', '_get_layout'),
    ('torch.distributed.checkpoint.filesystem', '_StorageInfo'),
    *(
        ('torch.distributed.checkpoint.metadata', name)
        for name in (
            'ChunkStorageMetadata', 'Metadata', 'MetadataIndex', 'StorageMeta', 'TensorProperties',
            'TensorStorageMetadata', '_MEM_FORMAT_ENCODING',
        )
    ),
}  # fmt: skip


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _INDEX or (module == 'torch' and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f'it refers to {module}.{name}')


class SafeReader(FileSystemReader):
    """Read a sharded checkpoint without executing anything in its index, which is a pickle."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
        """Return the index.

        Raises:
            UserError: it is damaged, refers to code or to other files than those beside it, or declares more than
                they hold.
        """
        path = os.path.join(self.path, '.metadata')
        if not os.path.isfile(path):
            raise UserError(f'{self.path}: expected a sharded checkpoint, found no .metadata')
        with open(path, 'rb') as file:
            content = file.read(_LARGEST_INDEX + 1)
        try:
            if len(content) > _LARGEST_INDEX:
                raise DamagedError(f'it is larger than {_LARGEST_INDEX:,} bytes')
            check_pickle(content)
            metadata = _IndexUnpickler(io.BytesIO(content)).load()
            _check_index(metadata, self.path)
        except DamagedError as error:
            raise UserError(f'{path}: not the index of a sharded checkpoint: {error}') from None
        except Exception as error:  # unpickling raises almost anything on damaged content
            raise UserError(f'{path}: not the index of a sharded checkpoint: {describe(error)}') from None
        metadata.storage_meta.load_id = self.load_id
        return metadata


def _check_index(metadata: Any, folder: Any) -> None:
    """Compare an index with the files beside it.

    Raises:
        DamagedError: says what is wrong.
    """
    if not isinstance(metadata, Metadata) or metadata.storage_meta is None:
        raise DamagedError('no storage_meta')
    sizes: dict[str, int] = {}
    for info in metadata.storage_data.values():
        name = info.relative_path
        if name not in sizes:
            path = os.path.join(folder, name)
            if os.path.basename(name) != name or os.path.islink(path) or not os.path.isfile(path):
                raise DamagedError(f'it refers to {name!r}; expected the name of a file beside it')
            sizes[name] = os.path.getsize(path)
        if min(info.offset, info.length) < 0 or info.offset + info.length > sizes[name]:
            raise DamagedError(
                f'it refers to bytes {info.offset:,} to {info.offset + info.length:,} of {name}, which has '
                f'{sizes[name]:,}'
            )
        if info.transform_descriptors:
            raise DamagedError(f'{name} is compressed, which checkpoints of --shard are not')
    declared = 0
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise DamagedError(f'{name} is no tensor')
        if min(entry.size, default=0) < 0:
            raise DamagedError(f'{name} has the shape {tuple(entry.size)}')
        inside = all(
            len(chunk.offsets) == len(chunk.sizes) == len(entry.size)
            and all(0 <= o <= o + n <= m for o, n, m in zip(chunk.offsets, chunk.sizes, entry.size, strict=True))
            for chunk in entry.chunks
        )
        if not inside or sum(math.prod(chunk.sizes) for chunk in entry.chunks) != math.prod(entry.size):
            raise DamagedError(f'the parts of {name} do not make up its shape {tuple(entry.size)}')
        declared += math.prod(entry.size) * entry.properties.dtype.itemsize
    if declared > sum(sizes.values()):
        raise DamagedError(f'its tensors have {declared:,} bytes, the files {sum(sizes.values()):,}')
