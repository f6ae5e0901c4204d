"""Run steps within a time limit, keep each result, and go on where an earlier run stopped."""

import contextlib
import faulthandler
import gc
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import UserError
from ...files import replace_file, write_text
from ..benchmark import machine

RESTART = 75  # exit code: the GPU answers this process no more, a new one can go on
TOO_LATE = 124  # exit code: a step did not give way when the time was up
_MOST_ATTEMPTS = 2
_LEAST_SECONDS = 4.0  # less is not worth the start of a step


@dataclass(frozen=True)
class Step:
    """A piece of work with a result of its own.

    Attributes:
        key: what is measured, for people and for the file of results.
        run: does the work; what it returns must be JSON.
        bound: the longest time in seconds that it may take.
    """

    key: str
    run: Callable[[], Any]
    bound: float = 45.0


class Results:
    """What was measured so far, in a JSON file that is written after each step.

    ``content['steps']`` has an entry for each step: ``attempts``, and
    ``value`` or ``error`` once it has ended.

    Args:
        path: the file; an existing one is continued.

    Raises:
        ValueError: the file is no such file, or is from another machine.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.content: dict[str, Any] = dict(machine=machine(), left_out=[], steps={})
        if not os.path.exists(path):
            return
        try:
            with open(path, encoding='utf-8') as file:
                found = json.load(file)
            theirs, _ = found['machine'], found['steps'].keys()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f'{path}: found {error!r}, expected results of gpu_report; remove the file') from None
        for key in ('device', 'torch', 'mmseg_segmenter'):
            if theirs.get(key) != self.content['machine'][key]:
                raise UserError(
                    f'{path}: measured with {key} {theirs.get(key)}, expected {self.content["machine"][key]} as here; '
                    'choose another folder with --out, or remove the file'
                )
        self.content = found

    def finished(self, key: str) -> bool:
        """Return whether a step has ended, well or not."""
        entry = self.content['steps'].get(key, {})
        return 'value' in entry or 'error' in entry

    def value(self, key: str) -> Any:
        """Return the result of a step, or None if it has none."""
        return self.content['steps'].get(key, {}).get('value')

    def update(self, key: str, **entry: Any) -> None:
        """Change the entry of a step, and write the file."""
        self.content['steps'].setdefault(key, {}).update(entry)
        self.save()

    def save(self) -> None:
        """Write the file, whole or not at all."""
        replace_file(self.path, lambda path: write_text(path, json.dumps(self.content, indent=1)))


class OutOfTime(BaseException):
    """The time of a step is up; not an ``Exception``, so that nothing on the way takes it for a failure of its own."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`OutOfTime` in the main thread after some seconds, and again every 5 seconds.

    A call into C++ or CUDA ends first.
    """

    def ring(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    # again and again, since an exception in a destructor is lost
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01), 5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def exit_at(deadline: float) -> None:
    """End the process at a time, whatever it does then; results of finished steps are in their file."""

    def end() -> None:
        faulthandler.dump_traceback()
        os._exit(TOO_LATE)

    timer = threading.Timer(deadline - time.time(), end)
    timer.daemon = True
    timer.start()


def run_steps(steps: Sequence[Step], results: Results, deadline: float) -> None:
    """Run the steps that have no result yet, in their order, until the time is up.

    A step that raises, or that takes longer than its bound, is noted as
    failed and the next one runs.

    Args:
        steps: what to do, the most important first.
        results: where results are kept.
        deadline: time (seconds since the epoch) at which to stop.

    Raises:
        SystemExit: with code ``RESTART``, if the GPU no longer answers.
    """
    gc.freeze()  # modules stay, so collecting need not look through them after each case
    for step in steps:
        if results.finished(step.key):
            continue
        left = deadline - time.time()
        if left < _LEAST_SECONDS:
            return
        attempts = results.content['steps'].get(step.key, {}).get('attempts', 0)
        if attempts >= _MOST_ATTEMPTS:
            results.update(step.key, error=f'the process ended during it, {attempts} times')
            continue
        # written first, so that a step which kills the process is known by its attempts
        results.update(step.key, attempts=attempts + 1)
        _run_step(step, results, left)
        if not _gpu_answers():
            raise SystemExit(RESTART)


def _run_step(step: Step, results: Results, left: float) -> None:
    started = time.time()
    try:
        with time_limit(min(step.bound, left)):
            outcome = dict(value=step.run())
    except OutOfTime:
        if left < step.bound:  # all time is up, not its own: the next run tries again
            results.content['steps'].pop(step.key)
            results.save()
            return
        outcome = dict(error=f'took longer than {step.bound:.0f} s')
    except Exception as error:
        message = str(error).strip().splitlines()
        outcome = dict(error=f'{type(error).__name__}: {message[0][:300] if message else ""}')
    if 'error' in outcome:
        gc.collect()  # what the step left behind
    seconds = round(time.time() - started, 1)
    results.update(step.key, seconds=seconds, **outcome)
    print(f'{seconds:6.1f} s  {step.key}{": " + outcome["error"] if "error" in outcome else ""}', flush=True)


def _gpu_answers() -> bool:
    """Free cached memory and wait for the GPU; after some CUDA errors every further call fails."""
    if not torch.cuda.is_available():
        return True
    try:
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True
