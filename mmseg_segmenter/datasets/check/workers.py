"""Inspect the files of datasets in several processes."""

import os
import signal
import sys
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import cv2
from mmengine import ProgressBar

from ...errors import UserError
from .files import FileInspector
from .results import SplitStatistics

_CHUNK = 8  # images per task
_TASKS_AHEAD = 4  # tasks per process that are queued or wait for their turn; bounds the memory


class _Task(NamedTuple):
    inspector: int
    indices: range


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def inspect_all(
    inspectors: Sequence[FileInspector], workers: int, progress: bool
) -> Iterator[tuple[int, SplitStatistics]]:
    """Inspect all images, in order and in chunks.

    Args:
        inspectors: one per dataset.
        workers: number of processes; with 1, this process does the work.
        progress: show a progress bar on stderr.

    Yields:
        Index of the inspector and statistics of a chunk.

    Raises:
        UserError: a worker process died; names an image that it may have read.
    """
    tasks = [
        _Task(k, range(start, min(start + _CHUNK, len(inspector.dataset))))
        for k, inspector in enumerate(inspectors)
        for start in range(0, len(inspector.dataset), _CHUNK)
    ]
    bar = ProgressBar(sum(len(task.indices) for task in tasks), file=sys.stderr) if progress else None
    if workers == 1:
        results = (inspectors[task.inspector].inspect(task.indices) for task in tasks)
    else:
        results = _in_processes(inspectors, tasks, workers)
    try:
        for task, statistics in zip(tasks, results, strict=True):
            if bar is not None:
                bar.update(statistics.images)
            yield task.inspector, statistics
    finally:
        results.close()
        if bar is not None:
            print(file=sys.stderr)


def _in_processes(
    inspectors: Sequence[FileInspector], tasks: Sequence[_Task], workers: int
) -> Generator[SplitStatistics, None, None]:
    pool = ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(inspectors,))
    pending: deque[tuple[_Task, Future[SplitStatistics]]] = deque()
    remaining = iter(tasks)
    try:
        for _ in tasks:
            while len(pending) < _TASKS_AHEAD * workers and (task := next(remaining, None)):
                pending.append((task, pool.submit(_inspect, task)))
            yield pending[0][1].result()
            pending.popleft()
    except BrokenProcessPool:
        task = pending[0][0]
        raise UserError(
            f'a worker process died at or after {inspectors[task.inspector].image_path(task.indices[0])}: memory may '
            'have run out, or the image crashes its decoder. Use workers=1 to find out'
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_inspectors: Sequence[FileInspector] = ()  # of a worker process


def _start_worker(inspectors: Sequence[FileInspector]) -> None:
    global _inspectors
    _inspectors = inspectors
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends the workers


def _inspect(task: _Task) -> SplitStatistics:
    return _inspectors[task.inspector].inspect(task.indices)
