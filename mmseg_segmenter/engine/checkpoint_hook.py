"""Save checkpoints from which a run continues exactly, and of which one is whole at any moment."""

import glob
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, broadcast_object_list, get_world_size, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.runner import BaseLoop, Runner
from mmseg.registry import HOOKS

from ..errors import FileAccessError, UserError
from ..files import PART, replace_durably
from .preemption import EXIT_CODE, StopSignals
from .random_state import random_state, set_random_state
from .sample_stream import is_iteration_based, outlive_signals, seed_samples
from .work_dir import LAST, check_start, last_checkpoint, lock_work_dir, unlock_work_dir

# What the hook adds to a checkpoint.
KEY = 'exact_resume'
_DURABLE = dict(backend='mmseg_segmenter')


@register_backend('mmseg_segmenter')
class DurableBackend(LocalBackend):
    """Write files whole or not at all, and delete old ones once the new ones are there.

    mmengine deletes an old checkpoint before it writes the new one in place, and so can lose both.

    Attributes:
        condemned: files to delete at the end of :meth:`deleting_afterwards`; None outside of it.
    """

    def __init__(self) -> None:
        self.condemned: list[str] | None = None

    def put(self, obj: bytes, filepath: Any) -> None:
        """Write a file, whole or not at all."""
        replace_durably(os.fspath(filepath), obj)

    def remove(self, filepath: Any) -> None:
        """Delete a file; within :meth:`deleting_afterwards`, at its end."""
        if self.condemned is None:
            super().remove(filepath)
        else:
            self.condemned.append(os.fspath(filepath))

    @contextmanager
    def deleting_afterwards(self) -> Iterator[None]:
        """Delete files at the end of the outermost context, and none of them after an error."""
        if self.condemned is not None:
            yield
            return
        self.condemned = []
        try:
            yield
            condemned, self.condemned = self.condemned, None
            for path in condemned:
                super().remove(path)
        finally:
            self.condemned = None


@HOOKS.register_module()
class SegmenterCheckpointHook(CheckpointHook):
    """Save checkpoints from which a run continues as if it had not been interrupted.

    In place of mmengine's ``CheckpointHook``, in any config of mmseg::

        default_hooks = dict(checkpoint=dict(type='SegmenterCheckpointHook'))

    - After a resume, losses, learning rates, augmentations, the order of images and the weights are those of an
      uninterrupted run, bit for bit if the device is deterministic. Checkpoints have the random states of all
      processes. The random numbers of a sample follow from the seed and its place in the order of samples: the number
      of workers does not matter, and no image is loaded to get to where the run was.
    - A validation that was cut off is done first.
    - With accumulated gradients, a checkpoint is saved after the next update, when no gradients are pending.
    - Checkpoints are written under another name, synced and renamed. Old ones are deleted after that.
    - ``resume=True`` takes the last whole checkpoint, also in a work dir that was moved. It is an error if there is
      none, and it is one to start at iteration 0 beside the checkpoints of another run. ``resume='auto'`` continues if
      there is a checkpoint.
    - SIGTERM, SIGUSR1, SIGHUP and the first SIGINT (Ctrl-C) save after the current iteration and end the process with
      code 75.
    - One process at a time trains in a work dir.

    Args:
        kwargs: as ``CheckpointHook``. With ``backend_args`` or a remote ``out_dir``, mmengine writes the files.
    """

    backend_args: dict[str, Any] | None
    keep_ckpt_ids: deque[int | str]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.backend_args is None and self.file_client_args is None and '://' not in str(self.out_dir):
            self.backend_args = _DURABLE
        self._signals = StopSignals()
        self._checked = self._started = self._due = False
        self._resumed: dict[str, Any] | None = None
        self._seed: int | None = None
        self._before_validation: dict[str, Any] | None = None  # random state
        self._addition: dict[str, Any] | None = None  # to the checkpoint that is being saved
        self._saved = self._validated = -1  # iteration, or epoch of an epoch-based loop

    # Start

    def before_run(self, runner: Runner) -> None:
        """Lock the work dir, and find the checkpoint to continue from.

        Raises:
            UserError: as :func:`~.work_dir.lock_work_dir`, :func:`~.work_dir.check_start` and
                :func:`~.work_dir.last_checkpoint`.
        """
        if self._checked or not isinstance(runner._train_loop, BaseLoop):
            return  # a test or a validation
        self._checked = True
        found: list[str | None] = [None]
        if is_main_process():
            lock_work_dir(runner.work_dir)
            folder = None
            if self.out_dir is not None and self.backend_args == _DURABLE:
                folder = os.path.join(self.out_dir, os.path.basename(runner.work_dir.rstrip(os.sep)))
            check_start(runner.work_dir, runner._resume, runner._load_from, folder, self.filename_tmpl)
            if runner._resume and runner._load_from and runner._resume != 'auto':
                found[0] = runner._load_from
            elif runner._resume:
                found[0] = last_checkpoint(runner.work_dir, folder, self.filename_tmpl)
        broadcast_object_list(found)
        runner._resume = found[0] is not None
        runner._load_from = found[0] or runner._load_from

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Take what the hook had added to a checkpoint.

        Raises:
            UserError: the checkpoint to continue from has weights only.
        """
        addition = checkpoint.pop(KEY, None)
        if runner._resume:
            if 'optimizer' not in checkpoint or 'iter' not in checkpoint.get('meta', {}):
                raise UserError(
                    f'--resume: load_from={runner._load_from} has weights only, a training cannot continue from it; '
                    'leave out --resume to start from these weights, or use --auto-resume to do so unless the work dir '
                    'has a checkpoint'
                )
            self._resumed = addition
            if addition is None:
                runner.logger.warning(
                    'The checkpoint was not saved by SegmenterCheckpointHook and has no random states: the order of '
                    'images continues, but augmentation and dropout draw other numbers'
                )

    def before_train(self, runner: Runner) -> None:
        """Take the data to where the run was, and wait for signals."""
        super().before_train(runner)
        if self.backend_args == _DURABLE:
            if is_main_process():
                self._delete_parts(runner.work_dir)
            self._look_for_best_here(runner)
        self._signals.install()  # before the workers, which inherit the handlers
        seed = None
        if self._resumed is not None:
            seed = self._resumed['seed']
        elif runner._resume and not runner._randomness_cfg.get('diff_rank_seed'):
            seed = runner.seed
        self._seed = seed_samples(runner.train_loop, seed)
        if runner._val_loop is not None:
            outlive_signals(runner.val_loop.dataloader)

    def _delete_parts(self, work_dir: str) -> None:
        """Delete what a process that was killed while it saved left behind."""
        parts = [os.path.join(work_dir, f'.{LAST}{PART}')]
        if os.path.isdir(self.out_dir):
            parts += glob.glob(os.path.join(glob.escape(self.out_dir), f'.*.pth{PART}'))
        for name in (self._resumed or {}).get('condemned', ()):
            if name == os.path.basename(name) and name.startswith('best_'):
                parts.append(os.path.join(self.out_dir, name))
        for path in parts:
            with suppress(FileNotFoundError):
                os.unlink(path)

    def _look_for_best_here(self, runner: Runner) -> None:
        """Delete no best checkpoint but those of this folder, should the work dir have been moved or copied."""
        for key, path in list(runner.message_hub.runtime_info.items()):
            if not key.startswith('best_ckpt') or not path or not self.save_best:
                continue
            here = os.path.join(self.out_dir, os.path.basename(path))
            runner.message_hub.update_info(key, here)
            if key == 'best_ckpt':
                self.best_ckpt_path = here
            else:
                self.best_ckpt_path_dict[key.removeprefix('best_ckpt_')] = here

    def before_train_epoch(self, runner: Runner) -> None:
        """Restore the random states, and do the validation that was cut off."""
        if self._started:
            return
        self._started = True
        if self._resumed is None:
            return
        states = self._resumed['random_states']
        if len(states) == get_world_size():
            set_random_state(states[runner.rank])
        else:
            runner.logger.warning(
                f'The checkpoint has the random states of {len(states)} processes, this run has {get_world_size()}: '
                'dropout draws other numbers'
            )
        loop = runner.train_loop
        if os.path.dirname(os.path.abspath(runner._load_from)) == os.path.abspath(self.out_dir):
            self._saved, self.last_ckpt = loop.iter, runner._load_from
        if not self._resumed['validated'] and runner._val_loop is not None and _validation_is_due(loop):
            runner.logger.info('Validating first, which the run was about to do')
            runner.val_loop.run()
        self._validated = _progress(loop)

    # Save

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Save if it is time to, and stop if a signal has come."""
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if self._due and not _gradients_are_pending(runner):
            self._save_checkpoint(runner)
        if self._must_stop() and not _gradients_are_pending(runner):
            self._stop(runner, runner.iter + 1)

    def _save_checkpoint_with_step(self, runner: Runner, step: int | str, meta: dict[str, Any]) -> None:
        """Save, note the file in ``last_checkpoint``, then delete old ones."""
        self._due = _gradients_are_pending(runner)
        if self._due:
            runner.logger.info('Gradients are pending: the checkpoint is saved after the next update')
            return
        progress = meta['iter'] if is_iteration_based(runner.train_loop) else meta['epoch']
        self._addition = dict(
            random_states=all_gather_object(self._before_validation or random_state()),
            seed=self._seed,
            validated=self._validated == progress,
            # Deleted once this checkpoint is saved; by a resume, if this process does not get to it.
            condemned=[os.path.basename(path) for path in getattr(self.file_backend, 'condemned', None) or ()],
        )
        name = self.filename_tmpl.format(step)
        kept: list[int | str] = []
        if self.max_keep_ckpts > 0:
            kept = [*self.keep_ckpt_ids, *([] if step in self.keep_ckpt_ids else [step])]
            # Saved with the one too many, which a resume deletes if this process does not get to it.
            runner.message_hub.update_info('keep_ckpt_ids', list(kept))
        last = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', last)
        with self._reporting_failures():
            runner.save_checkpoint(
                self.out_dir, name, self.file_client_args,
                save_optimizer=self.save_optimizer, save_param_scheduler=self.save_param_scheduler,
                meta=meta, by_epoch=self.by_epoch, backend_args=self.backend_args, **self.args,
            )  # fmt: skip
            if is_main_process():
                replace_durably(os.path.join(runner.work_dir, LAST), last.encode())
        self._addition, self._saved, self.last_ckpt = None, meta['iter'], last
        while len(kept) > self.max_keep_ckpts > 0:
            old = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(kept.pop(0)))
            if is_main_process():
                self._delete(old)
        if kept:
            self.keep_ckpt_ids = deque(kept, self.max_keep_ckpts)
            runner.message_hub.update_info('keep_ckpt_ids', kept)

    def _delete(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):
            self.file_backend.rmtree(path)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        """Save the best checkpoint, then delete the one that was best before."""
        if self.backend_args != _DURABLE:
            super()._save_best_checkpoint(runner, metrics)
            return
        with self._reporting_failures(), self.file_backend.deleting_afterwards():
            super()._save_best_checkpoint(runner, metrics)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the random states to a checkpoint, unless it is of the weights only."""
        if self._addition is not None:
            checkpoint[KEY] = self._addition

    @contextmanager
    def _reporting_failures(self) -> Iterator[None]:
        try:
            yield
        except FileAccessError as error:
            if self.last_ckpt is None or 'is whole' in str(error):
                raise
            raise FileAccessError(f'{error}; {self.last_ckpt} is whole: --resume continues from it') from None

    # Validate

    def before_val(self, runner: Runner) -> None:
        """Note the random states, so that it makes no difference to the training whether there is a validation."""
        if self._started:
            self._before_validation = random_state()

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Stop if a signal has come. Several processes stop after the validation only, all at the same iteration."""
        if self._before_validation is None or self._signals.received is None or get_world_size() > 1:
            return
        if _gradients_are_pending(runner):
            return
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):  # gives the model the averaged weights in the meantime
                hook.after_val_epoch(runner)
        self._stop(runner, runner.iter)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any]) -> None:
        """Save if the scores are the best ones."""
        if self._started:
            self._validated = _progress(runner.train_loop)
        super().after_val_epoch(runner, metrics)

    def after_val(self, runner: Runner) -> None:
        """Restore the random states."""
        if self._before_validation is not None:
            set_random_state(self._before_validation)
            self._before_validation = None

    # Stop

    def _must_stop(self) -> bool:
        """Return whether any process was asked to stop; all get the same answer."""
        asked = torch.tensor(int(self._signals.received is not None))
        all_reduce(asked, 'max')
        return bool(asked)

    def _stop(self, runner: Runner, iteration: int) -> None:
        """Save, unless it is done, and end the process.

        Raises:
            SystemExit: with code 75.
        """
        if self._saved != iteration:
            step = f'{runner.epoch}_iter_{iteration}' if self.by_epoch else iteration
            self._save_checkpoint_with_step(runner, step, dict(epoch=runner.epoch, iter=iteration))
        reason = self._signals.received or 'another process'
        runner.logger.info(f'Stopped by {reason} after iteration {iteration}; --resume continues from {self.last_ckpt}')
        runner.visualizer.close()
        raise SystemExit(EXIT_CODE)

    def after_train(self, runner: Runner) -> None:
        """Give the signals back, and publish checkpoints as mmengine does."""
        self._signals.restore()
        self._started = False
        super().after_train(runner)

    def after_run(self, runner: Runner) -> None:
        """Let others train in the work dir."""
        unlock_work_dir(runner.work_dir)


def _gradients_are_pending(runner: Runner) -> bool:
    """Return whether gradients were accumulated since the last update."""
    wrapper = runner.optim_wrapper
    wrappers = wrapper.values() if hasattr(wrapper, 'values') else [wrapper]
    return not all(one.should_update() for one in wrappers)


def _progress(loop: BaseLoop) -> int:
    return loop.iter if is_iteration_based(loop) else loop.epoch


def _validation_is_due(loop: BaseLoop) -> bool:
    """Return whether a loop validates at this point, as in its ``run()``."""
    loop._decide_current_val_interval()
    done, last = _progress(loop), loop.max_iters if is_iteration_based(loop) else loop.max_epochs
    return done >= loop.val_begin and (done % loop.val_interval == 0 or done == last)
