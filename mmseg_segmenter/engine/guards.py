"""Stop a training whose loss or data cannot be right."""

import math
import os
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import all_gather_object, all_reduce, get_rank, is_distributed
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from ..files import replace_file, write_text
from ..labels import num_labels
from .precision import segmentor_of

_MAX_LISTED = 20  # bad samples named in the log
_KEY = 'skipped_batches'  # in a checkpoint


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stop a training whose loss is NaN or infinite, before weights are updated from it or saved.

    The loss is looked at before it is scaled for mixed precision, whose scaler skips updates with infinite gradients
    as part of its normal work. If the loss of one process is not finite, all processes act together, and name the
    files of that process.

    Args:
        max_skipped: number of batches with such a loss that the training may leave out. Their gradients are not
            computed, so they change neither weights nor the state of the optimizer. With the next one it stops. A
            resumed training continues to count.
    """

    priority = 'VERY_HIGH'

    def __init__(self, max_skipped: int = 0) -> None:
        if not isinstance(max_skipped, int) or max_skipped < 0:
            raise UserError(f'FiniteLossHook: max_skipped={max_skipped!r}; expected a number of batches')
        self.max_skipped = max_skipped
        self.skipped = 0
        self._images: list[str] = []

    def before_train(self, runner: Runner) -> None:
        """Look at each loss that the optimizer wrapper is given."""
        wrapper = runner.optim_wrapper
        wrapper.update_params = partial(self._update_if_finite, runner, wrapper.update_params)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Note the files of a batch."""
        samples = (data_batch.get('data_samples') if isinstance(data_batch, dict) else None) or []
        self._images = [sample.get('img_path') or '?' for sample in samples]

    def _update_if_finite(self, runner: Runner, update_params: Any, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        finite = torch.isfinite(loss.detach()).all().float()
        all_reduce(finite, 'min')
        if finite.item():
            update_params(loss, *args, **kwargs)
            return
        losses = all_gather_object((get_rank(), loss.item(), self._images))
        found = '; '.join(
            f'the loss{f" of process {rank}" if is_distributed() else ""} is {value:g}, images {", ".join(images)}'
            for rank, value, images in losses
            if not math.isfinite(value)
        )
        rates = ', '.join(f'{rate:g}' for rate in runner.optim_wrapper.get_lr()['lr'][:1])
        message = f'iteration {runner.iter + 1}, learning rate {rates}: {found}'
        if self.skipped == self.max_skipped:
            hint = f', after {self.skipped} skipped batches' if self.skipped else ''
            raise UserError(
                f'{message}{hint}. The weights are those of the last update. Look at these images, lower '
                'optim_wrapper.optimizer.lr or set optim_wrapper.clip_grad; '
                "custom_hooks=[dict(type='FiniteLossHook', max_skipped=N)] skips N such batches"
            )
        self.skipped += 1
        runner.logger.warning(f'Skipped a batch ({self.skipped} of at most {self.max_skipped}): {message}')
        _leave_out(runner.optim_wrapper, runner.model)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Continue to count if the training is resumed."""
        if runner._resume:
            self.skipped = checkpoint.get(_KEY, 0)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Note how many batches were skipped, and refuse to save weights that are not finite.

        A checkpoint of them would take the place of a good one.

        Raises:
            UserError: names the first such tensor.
        """
        checkpoint[_KEY] = self.skipped
        self.check_weights(runner, first_not_finite(checkpoint['state_dict']))

    def check_weights(self, runner: Runner, name: str | None) -> None:
        """Refuse to save weights that are not finite.

        Args:
            runner: of the training.
            name: of the first such tensor; None if there is none.

        Raises:
            UserError: names it.
        """
        if name is not None:
            raise UserError(
                f'iteration {runner.iter + 1}: {name} has values that are not finite, although the loss was; the '
                'checkpoint is not saved. Lower optim_wrapper.optimizer.lr or set optim_wrapper.clip_grad'
            )


def first_not_finite(state: Mapping[str, Any]) -> str | None:
    """Return the name of the first tensor that is not finite, None if all are; of sharded ones, look at our part."""
    for name, value in state.items():
        tensor = value.to_local() if isinstance(value, DTensor) else value
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return name
    return None


def _leave_out(wrapper: Any, model: torch.nn.Module) -> None:
    """Count a batch without its gradients; update the weights if it was the last of the accumulated ones."""
    wrapper._inner_count += 1
    if not wrapper.should_update():
        return
    gradients = [
        parameter.grad for group in wrapper.param_groups for parameter in group['params'] if parameter.grad is not None
    ]
    # Gradients are there only if other batches of this update were finite.
    if gradients:
        # DDP averages gradients in the backward pass of the last batch, which is left out here.
        if isinstance(model, DistributedDataParallel):
            for gradient in gradients:
                all_reduce(gradient, 'mean')
        wrapper.step()
    wrapper.zero_grad()


@HOOKS.register_module()
class DataGuardHook(Hook):
    """Compare the classes of model and data before a training, and list the samples that were skipped after it."""

    def __init__(self) -> None:
        self._skipping: list[Any] = []

    def before_train(self, runner: Runner) -> None:
        """Compare the number of classes of the head with that of the datasets.

        Raises:
            UserError: they differ; names both settings.
        """
        _check_classes(runner)
        self._skipping = list(_skipping(runner.train_loop.dataloader.dataset))
        if runner.cfg.get('skip_bad') and not self._skipping:
            raise UserError(
                "skip_bad=True is read by tools/train.py; elsewhere, wrap the dataset: dict(type='SkipBadSamples', "
                'dataset=...)'
            )
        if self._skipping and runner.rank == 0 and not runner._resume and os.path.exists(_list_of(runner)):
            os.remove(_list_of(runner))  # of another run in this work dir

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Write down new bad samples at once: a run that is killed and resumed lists those of both parts."""
        new = [reason for dataset in self._skipping for reason in dataset.new_bad_samples()]
        if new:
            with open(_list_of(runner), 'a', encoding='utf-8') as file:  # one write, also of several processes
                file.write(''.join(f'{reason}\n' for reason in new))

    def after_train(self, runner: Runner) -> None:
        """List the bad samples that the processes skipped, in the log and in ``bad_samples.txt`` of the work dir."""
        if not self._skipping:
            return
        found = [reason for dataset in self._skipping for reason in dataset.bad_samples()]
        everywhere = {reason for of_process in all_gather_object(found) for reason in of_process}
        if runner.rank != 0:
            return
        path = _list_of(runner)
        if os.path.exists(path):
            with open(path, encoding='utf-8') as file:
                everywhere.update(line.rstrip('\n') for line in file)
        reasons = sorted(everywhere)
        replace_file(path, partial(write_text, text=''.join(f'{reason}\n' for reason in reasons)))
        shown = ''.join(f'\n  {reason}' for reason in reasons[:_MAX_LISTED])
        more = f'\n  ... (all are in {path})' if len(reasons) > _MAX_LISTED else ''
        runner.logger.info(f'{len(reasons)} bad samples were skipped, and others taken in their place{shown}{more}')


def _list_of(runner: Runner) -> str:
    return os.path.join(runner.work_dir, 'bad_samples.txt')


def _check_classes(runner: Runner) -> None:
    head: Any = getattr(segmentor_of(runner.model), 'decode_head', None)
    head = head[-1] if isinstance(head, torch.nn.ModuleList) else head
    if not isinstance(getattr(head, 'num_classes', None), int):
        return
    found = num_labels(head.num_classes, getattr(head, 'out_channels', None))
    for split, loop in (('train', runner.train_loop), ('val', runner.val_loop)):
        dataset = getattr(getattr(loop, 'dataloader', None), 'dataset', None)
        names = getattr(dataset, 'metainfo', {}).get('classes')
        if names is not None and len(names) != found:
            shown = ', '.join(map(str, names[:5])) + (', ...' if len(names) > 5 else '')
            raise UserError(
                f'model.decode_head.num_classes={head.num_classes}, but {split}_dataloader.dataset has '
                f'{len(names)} classes ({shown}); set num_classes to {len(names)}, '
                'or metainfo.classes of the dataset'
            )


def skip_bad_samples(cfg: Config) -> None:
    """Skip bad samples in training.

    Args:
        cfg: whole config; the dataset of ``train_dataloader`` is wrapped in ``SkipBadSamples``.
    """
    loader = cfg.train_dataloader
    if loader.dataset.type != 'SkipBadSamples':
        loader.dataset = dict(type='SkipBadSamples', dataset=loader.dataset)


def _skipping(dataset: Any) -> Iterator[Any]:
    """Yield the wrappers that skip bad samples, in wrappers such as ``SeededDataset``."""
    while dataset is not None:
        if 'bad_samples' in vars(type(dataset)):
            yield dataset
        dataset = vars(dataset).get('dataset')
