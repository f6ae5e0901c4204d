"""Share inputs among the processes of ``torchrun``, on one machine or several.

No process group is made: the processes meet when they start and when they
end, in the store that ``torchrun`` keeps. Between, nothing that happens to one
of them reaches the results of the others.
"""

import argparse
import os
import pickle
import threading
import time
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from .command import Progress, Work, make_pipeline, make_predictor, plan, report, segment, stop_on_signals, summarize
from .inputs import Task
from .journal import Journal
from .outputs import OutputSpec
from .predictor import Predictor
from .storage import is_uri

_CHUNK = 1 << 22  # bytes of one value in the store, which refuses those above 8 MiB
_POLL = 0.1  # seconds


class _Share(NamedTuple):
    """What rank 0 tells the others.

    Attributes:
        outputs: what to write.
        journal: of this run.
        todo: tasks of all ranks.
    """

    outputs: OutputSpec
    journal: Journal
    todo: list[Task]


def predict_share(args: argparse.Namespace) -> int:
    """Segment this process's share of the inputs of a command line.

    Rank 0 finds the inputs and tells the others, waits for them at the end,
    and writes ``summary.csv``. If a process dies, ``torchrun`` stops the
    others; ``--resume`` does what is left, with any number of processes.
    After a restart by ``torchrun --max-restarts``, the run goes on as with
    ``--resume``.

    Args:
        args: of ``tools/predict.py``.

    Returns:
        The exit code: on rank 0 as without ``torchrun``; on other ranks 0, or
        130 if they were stopped.

    Raises:
        UserError: an argument is not usable.
    """
    store, rank, world_size = next(rendezvous('env://'))
    restarts = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', '0'))
    store = PrefixStore(f'predict/{restarts}', store)  # which has the keys of the earlier attempts
    if restarts:
        args.resume, args.force = True, False
    args.device = _device(args.device)
    with stop_on_signals() as stopped:
        work = plan(args) if rank == 0 else None
        predictor = make_predictor(args)
        if work is not None:
            _begin(args, work, predictor, store)
        share = _receive(store, stopped)
        if share is None:
            return 130
        run, share.journal.writer = share.journal.writer, f'{share.journal.writer}-{rank}'
        tasks = share.todo[rank::world_size]
        progress = Progress(len(tasks))
        pipeline = make_pipeline(args, predictor, share.outputs, progress)
        segment(pipeline, tasks, share.journal, {}, progress, stopped)
        print(f'rank {rank}: {progress.summary(pipeline.model_seconds)}', flush=True)
        store.set(f'ended/{rank}', '')
        if work is None:
            return 130 if stopped.is_set() else 0
        # An exit code other than 0 makes torchrun stop the others, so this process is the last one.
        _wait(store, [f'ended/{i}' for i in range(world_size)], stopped)
    work.results.update(work.journal.read(run))
    summarize(work, args.out, predictor.classes.names)
    return report(work, args.out)


def _begin(args: argparse.Namespace, work: Work, predictor: Predictor, store: Store) -> None:
    """Tell all ranks what to do, when it is known that the arguments are usable."""
    make_pipeline(args, predictor, work.outputs)
    if args.force:
        work.journal.clear()
    work.journal.writer = f'{time.time_ns():x}'  # of this run, to find its results at the end
    _send(store, _Share(work.outputs, work.journal, largest_first(work.todo)))


def largest_first(tasks: Sequence[Task]) -> list[Task]:
    """Sort tasks by the size of their files, so that every n-th task is a fair share.

    Tasks of one size, and those at URIs, keep their order.
    """
    return sorted(tasks, key=file_size, reverse=True)


def file_size(task: Task) -> int:
    """Return the bytes of the input of a task, 0 for a URI and for a file that cannot be read."""
    try:
        return 0 if is_uri(task.source) else os.path.getsize(os.path.expanduser(task.source))
    except OSError:  # it is reported when the file is read
        return 0


def _device(device: str) -> str:
    """Return the GPU of this process if ``device`` does not choose one."""
    if device not in ('auto', 'cuda') or not torch.cuda.is_available():
        return device
    return f'cuda:{int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count()}'


def _send(store: Store, share: _Share) -> None:
    data = zlib.compress(pickle.dumps(share), 1)
    chunks = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    for i, chunk in enumerate(chunks):
        store.set(f'share/{i}', chunk)  # type: ignore[arg-type]  # bytes are fine
    store.set('share', str(len(chunks)))


def _receive(store: Store, stopped: threading.Event) -> _Share | None:
    """Return what rank 0 sent, None if this process is stopped before."""
    if not _wait(store, ['share'], stopped):
        return None
    chunks = [store.get(f'share/{i}') for i in range(int(store.get('share')))]
    return pickle.loads(zlib.decompress(b''.join(chunks)))


def _wait(store: Store, keys: list[str], stopped: threading.Event) -> bool:
    """Wait for keys; return False if this process is stopped before they are set."""
    while not store.check(keys):
        if stopped.wait(_POLL):
            return False
    return True
