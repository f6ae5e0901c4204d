"""Make each training sample a function of the seed and its place in the order of samples.

A sample then does not depend on the process, worker or run that loads it, and those before it need not be loaded.
"""

import atexit
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, repeat
from typing import Any, NamedTuple

import torch
from mmengine.dist import get_dist_info
from mmengine.runner import BaseLoop
from torch.utils.data import DataLoader, get_worker_info

from ..errors import UserError
from .preemption import SIGNALS
from .random_state import seed_random, seeded_random


class Place(NamedTuple):
    """Where a sample stands in the order of samples.

    Attributes:
        epoch: pass over the data; always 0 with an endless sampler.
        position: within the pass, counted over all processes.
        sample: its index in the dataset.
    """

    epoch: int
    position: int
    sample: int


class SeededDataset:
    """Seed the random numbers of each sample of a dataset by its place.

    Args:
        dataset: with ``__len__`` and ``__getitem__``; other attributes are passed on.
        seed: the same in all processes.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset':  # not there yet while a worker unpickles this
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: Place) -> Any:
        """Load a sample."""
        entropy = self.seed, place.epoch, place.position
        if get_worker_info() is not None:  # nothing else in a worker draws numbers
            seed_random(*entropy)
            return self.dataset[place.sample]
        with seeded_random(*entropy):
            return self.dataset[place.sample]


class SampleStream:
    """Yield batches of :class:`Place` for a ``DataLoader``, as its ``batch_sampler``.

    Processes take turns in the order of mmengine's samplers: with two processes and one image each, the samples are
    those of one process with batches of two.

    Args:
        batch_sampler: yields batches of indices, the same ones each time that it starts over.
        skip: number of batches to leave out at the start.
        endless: start over at the end of a pass.
    """

    def __init__(self, batch_sampler: Any, skip: int, endless: bool) -> None:
        self.batch_sampler = batch_sampler
        self.skip = skip
        self.endless = endless
        self.rank, self.world_size = get_dist_info()

    @property
    def sampler(self) -> Any:
        """The sampler whose ``set_epoch`` mmengine's ``DistSamplerSeedHook`` calls."""
        return self.batch_sampler.sampler

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[list[Place]]:
        epoch = getattr(self.sampler, 'epoch', 0)
        while True:
            seen = 0
            for batch in self.batch_sampler:
                first = seen
                seen += len(batch)
                if self.skip:
                    self.skip -= 1
                    continue
                yield [Place(epoch, (first + i) * self.world_size + self.rank, index) for i, index in enumerate(batch)]
            if not self.endless:
                return
            if not seen:
                raise UserError('train_dataloader: the sampler yields no batch; has the dataset fewer images than one?')
            epoch += 1
            if hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(epoch)


def seed_samples(loop: BaseLoop, seed: int | None = None) -> int | None:
    """Make the samples of a training loop functions of the seed and their place, from its current iteration on.

    The loader of the loop is changed in place and starts anew; samples that its workers loaded ahead are dropped.

    Args:
        loop: of mmengine, about to run.
        seed: of the order and of the samples. Default: that of the sampler, or of the runner.

    Returns:
        The seed, for the checkpoint. ``None`` if the loader has no batches of indices; it is left alone.
    """
    loader: DataLoader = loop.dataloader
    batch_sampler = loader.batch_sampler
    if isinstance(batch_sampler, SampleStream):
        return seed  # of a run in the same process
    if batch_sampler is None or not hasattr(batch_sampler, 'sampler'):
        return None
    if seed is None:
        own = getattr(batch_sampler.sampler, 'seed', None)
        seed = int(loop.runner.seed if own is None else own)
    iteration_based = is_iteration_based(loop)
    skip = loop.iter if iteration_based else loop.iter - loop.epoch * len(loader)
    _restart(batch_sampler.sampler, seed)
    # DataLoader forbids to set some of these. A new one would leave the old one in the hands of the runner.
    vars(loader).update(
        batch_sampler=SampleStream(batch_sampler, skip, endless=iteration_based),
        dataset=SeededDataset(loader.dataset, seed),
        # Workers are given seeds that nothing uses any more. The generator of the process must not be drawn from.
        generator=loader.generator or torch.Generator(),
        _iterator=None,  # kept for persistent workers
    )
    outlive_signals(loader)
    if iteration_based:
        loop.dataloader_iterator = None  # ends its workers
        # mmengine takes and drops one batch for each iteration before the current one.
        loop.dataloader_iterator = chain(repeat(None, loop.iter), iter(loader))
    return seed


def is_iteration_based(loop: BaseLoop) -> bool:
    """Return whether a loop takes batches from an endless iterator, as mmengine's ``IterBasedTrainLoop``."""
    return hasattr(loop, 'dataloader_iterator')


def _restart(sampler: Any, seed: int) -> None:
    """Let a sampler begin with its first sample."""
    if hasattr(sampler, 'seed'):
        sampler.seed = seed
    if hasattr(sampler, '_indices_of_rank'):  # InfiniteSampler, which otherwise continues where it was
        sampler.indices = sampler._indices_of_rank()


def outlive_signals(loader: DataLoader) -> None:
    """Let the workers of a loader survive the signals that terminals and schedulers send to all processes of a job.

    The main process needs the workers until it has saved; they end with it. A second SIGTERM ends a worker at once.
    """
    atexit.unregister(_end_workers)
    atexit.register(_end_workers)  # runs before multiprocessing's, which sends one SIGTERM and waits
    loader.worker_init_fn = partial(_init_worker, loader.worker_init_fn)


def _end_workers() -> None:
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _init_worker(init: Callable[[int], None] | None, worker_id: int) -> None:
    if init is not None:
        init(worker_id)
    for name in SIGNALS:
        if hasattr(signal, name):  # Windows lacks two
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))
