"""What ``tools/predict.py`` does."""

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from ..datasets.image_files import MAX_PIXELS
from ..engine import parse_options
from ..errors import MissingFileError, UserError
from ..files import check_folder
from .inputs import Task, find_tasks, identity
from .journal import Journal, Result, Results, write_summary
from .loading import annotation_format, load_config
from .outputs import Annotations, OutputSpec
from .pipeline import INTERRUPTED, Pipeline
from .predictor import Predictor
from .raster import import_rasterio
from .storage import exists, is_uri

_CHECKPOINT_SUFFIXES = ('.pth', '.pt', '.ckpt', '.bin', '.safetensors', '.safetensors.index.json', '.npz')
_SHOWN_ERRORS = 20


class Positionals(NamedTuple):
    """The positional arguments of the command line, told apart.

    Attributes:
        config: config file or folder of a run.
        checkpoint: path or URL; None for the one in the folder.
        inputs: what to segment.
    """

    config: str
    checkpoint: str | None
    inputs: list[str]


def split_positionals(config: str, others: Sequence[str]) -> Positionals:
    """Tell the checkpoint from the inputs.

    Args:
        config: first argument.
        others: checkpoint and inputs; behind a folder, the checkpoint may be
            missing.

    Raises:
        UserError: no input is left.
    """
    folder = os.path.isdir(os.path.expanduser(config))
    if folder and not others[0].partition('?')[0].endswith(_CHECKPOINT_SUFFIXES):
        return Positionals(config, None, list(others))
    if len(others) < 2:
        raise UserError(f'no input after the checkpoint {others[0]}; expected CONFIG CHECKPOINT INPUT...')
    return Positionals(config, others[0], list(others[1:]))


class Work(NamedTuple):
    """What a command line asks for.

    Attributes:
        outputs: what to write.
        journal: of this run.
        tasks: all of them, in order.
        results: of these tasks by source, first those of an earlier run.
        others: results of an earlier run for other inputs.
    """

    outputs: OutputSpec
    journal: Journal
    tasks: list[Task]
    results: Results
    others: list[Result]

    @property
    def todo(self) -> list[Task]:
        """Tasks without a result."""
        return [task for task in self.tasks if task.source not in self.results]

    def found(self) -> Iterator[Result]:
        """Yield the results so far: those for other inputs, then those of the tasks, in order."""
        yield from self.others
        for task in self.tasks:
            if (result := self.results.get(task.source)) is not None:
                yield result


def predict(args: argparse.Namespace) -> int:
    """Segment the inputs of a command line.

    Args:
        args: of ``tools/predict.py``.

    Returns:
        The exit code: 0, 1 if an input failed, 130 after Ctrl-C.

    Raises:
        UserError: an argument is not usable.
    """
    if args.engine == 'ray':
        from .ray_engine import predict_on_ray

        return predict_on_ray(args)
    if args.launcher == 'pytorch':
        from .distributed import predict_share

        return predict_share(args)
    work = plan(args)
    predictor = make_predictor(args)
    progress = Progress(len(work.todo))
    pipeline = make_pipeline(args, predictor, work.outputs, progress)
    if args.force:
        work.journal.clear()
    with stop_on_signals() as stopped:
        try:
            segment(pipeline, work.todo, work.journal, work.results, progress, stopped)
        finally:
            summarize(work, args.out, predictor.classes.names)
    print(progress.summary(pipeline.model_seconds))
    return report(work, args.out)


def segment(
    pipeline: Pipeline,
    tasks: Sequence[Task],
    journal: Journal,
    results: MutableMapping[str, Result],
    progress: 'Progress',
    stopped: threading.Event,
) -> None:
    """Segment the inputs of tasks, and note each result in the journal.

    Args:
        pipeline: with the model.
        tasks: to do.
        journal: gets the results.
        results: gets them too, by source.
        progress: is told about them.
        stopped: when it is set, no further input is begun.

    Raises:
        FileAccessError: the journal cannot be written.
    """
    try:
        for result in pipeline.run(tasks, stopped.is_set):
            if result.error == INTERRUPTED:
                continue
            journal.write(result)
            results[result.source] = result
            progress.update(result)
    finally:
        progress.close()
        journal.flush()


def summarize(work: Work, folder: str, classes: Sequence[str]) -> None:
    """Write ``summary.csv`` with the results so far, in the order of the tasks.

    Args:
        work: with the results.
        folder: of the results.
        classes: names of the classes.

    Raises:
        FileAccessError: it cannot be written.
    """
    write_summary(folder, work.found(), classes)


def plan(args: argparse.Namespace) -> Work:
    """Find the inputs of a command line, and what is left to do.

    Args:
        args: of ``tools/predict.py``.

    Raises:
        UserError: an argument is not usable.
    """
    if args.raster:
        import_rasterio()
    given = split_positionals(args.config, args.inputs)
    outputs = _output_spec(args, given)
    local = not is_uri(args.out)
    if local:
        check_folder(args.out)
    journal = Journal(args.out, _settings(args, given, outputs))
    earlier = {identity(source): result for source, result in journal.start(args.resume, args.force).items()}
    known = {result.source: result.name for result in earlier.values()}
    tasks = find_tasks(given.inputs, args.out if local else None, known, args.raster)
    found = {task.source: earlier.pop(identity(task.source), None) for task in tasks}
    done = {source: result for source, result in found.items() if result is not None and _is_done(result, outputs)}
    if args.resume:
        print(f'{len(done)} of {len(tasks)} inputs are done already')
    return Work(outputs, journal, tasks, Results(done), list(earlier.values()))


def make_predictor(args: argparse.Namespace) -> Predictor:
    """Build the model of a command line.

    Args:
        args: of ``tools/predict.py``.

    Raises:
        UserError: as :class:`Predictor`.
    """
    given = split_positionals(args.config, args.inputs)
    return Predictor(
        given.config,
        given.checkpoint,
        device=args.device,
        amp=args.amp,
        compile=args.compile,
        runtime=args.runtime,
        precision=args.precision,
        network=args.network,
        tta=args.tta,
        cfg_options=parse_options(args.cfg_options),
        window_batch_size=args.window_batch_size,
        max_pixels=args.max_pixels or MAX_PIXELS,
        allow_partial=args.allow_partial,
    )


def make_pipeline(
    args: argparse.Namespace, predictor: Predictor, outputs: OutputSpec, progress: 'Progress | None' = None
) -> Pipeline:
    """Make the pipeline of a command line.

    Args:
        args: of ``tools/predict.py``.
        predictor: the model.
        outputs: what to write.
        progress: told about inputs that take long.
    """
    part = None if progress is None else progress.part
    return Pipeline(predictor, outputs, args.batch_size, args.readers, args.writers, part)


def _output_spec(args: argparse.Namespace, given: Positionals) -> OutputSpec:
    kinds, annotations = args.outputs, None
    if args.annotations is not None:
        if not os.path.isdir(args.annotations):
            raise MissingFileError(f'--annotations: folder {args.annotations} not found')
        kinds = kinds if 'comparison' in kinds else (*kinds, 'comparison')
        cfg, _ = load_config(given.config, given.checkpoint, parse_options(args.cfg_options))
        annotations = Annotations(args.annotations, annotation_format(cfg))
    options = dict(
        bands=args.bands, value_range=args.value_range and tuple(args.value_range), max_frames=args.max_frames
    )
    options = {key: value for key, value in options.items() if value is not None}
    return OutputSpec(args.out, kinds, args.opacity, f'.{args.overlay_format}', annotations, options)


def _settings(args: argparse.Namespace, given: Positionals, outputs: OutputSpec) -> dict[str, Any]:
    """Return what the results depend on."""
    checkpoint = given.checkpoint or load_config(given.config, None)[1]
    return dict(
        config=os.path.abspath(given.config),
        checkpoint=checkpoint if is_uri(checkpoint) else os.path.abspath(checkpoint),
        outputs=sorted(outputs.kinds),
        opacity=outputs.opacity,
        overlay_format=outputs.overlay_suffix,
        options=outputs.options,
        amp=args.amp,
        tta=args.tta,
        cfg_options=args.cfg_options,
        runtime=None if args.runtime == 'torch' else args.runtime,  # as in journals from before the option
        precision=args.precision,
        network=args.network and os.path.abspath(args.network),
    )


def _is_done(result: Result, outputs: OutputSpec) -> bool:
    return result.status == 'done' and all(exists(outputs.path(file)) for file in result.files)


class Progress:
    """Print how far a run is: one line that changes in a terminal, else a line every half minute.

    Args:
        total: number of inputs.
    """

    def __init__(self, total: int) -> None:
        self._total, self._done, self._failed = total, 0, 0
        self._start = self._printed = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def update(self, result: Result) -> None:
        """Count a result."""
        self._done += result.status == 'done'
        self._failed += result.status == 'failed'
        self._print()

    def part(self, task: Task, share: float) -> None:
        """Show how much of a large input is done."""
        self._print(f', {os.path.basename(task.source)}: {share:.0%}')

    def _print(self, more: str = '') -> None:
        now = time.monotonic()
        if now - self._printed < (0.2 if self._terminal else 30):
            return
        self._printed = now
        count = self._done + self._failed
        failed = f', {self._failed} failed' if self._failed else ''
        line = f'{count} of {self._total} inputs, {count / (now - self._start):.1f} per second{failed}{more}'
        print(f'\r\033[K{line}' if self._terminal else line, end='' if self._terminal else '\n', file=sys.stderr)
        sys.stderr.flush()

    def close(self) -> None:
        """Clear the line in a terminal."""
        if self._terminal:
            print('\r\033[K', end='', file=sys.stderr, flush=True)

    def summary(self, model_seconds: float | None = None) -> str:
        """Return the line that ends a run, with the time that the model took if it is known."""
        seconds = max(time.monotonic() - self._start, 1e-6)
        count = self._done + self._failed
        model = '' if model_seconds is None else f'; {min(model_seconds / seconds, 1):.0%} of the time in the model'
        return f'{self._done} of {self._total} inputs in {seconds:.1f} s ({count / seconds:.1f} per second{model})'


def report(work: Work, folder: str) -> int:
    """Print which inputs failed, and how to go on; return the exit code.

    Args:
        work: with the results of this run.
        folder: of the results.
    """
    failed = done = rasters = 0
    for result in work.results.values():
        done += result.status == 'done'
        rasters += result.status == 'done' and result.kind == 'raster'
        failed += result.status == 'failed'
        if result.status == 'failed' and failed <= _SHOWN_ERRORS:
            source = ' '.join(result.source.splitlines())
            text = result.error if source in result.error else f'{source}: {result.error}'
            print(f'failed: {text}', file=sys.stderr)
    if failed:
        more = f' ({failed - _SHOWN_ERRORS} more are in summary.csv)' if failed > _SHOWN_ERRORS else ''
        print(f'{failed} of {len(work.tasks)} inputs failed{more}', file=sys.stderr)
    if work.todo:
        print(
            f'interrupted; {len(work.todo)} inputs are left. The same command with --resume continues', file=sys.stderr
        )
        return 130
    others = {kind for kind in work.outputs.kinds if kind != 'labels'}
    if others and rasters:
        print(f'rasters: {rasters}; for them only labels (GeoTIFF) are written, no {", ".join(sorted(others))}')
    if done:
        print(f'results are in {folder}, with a table in summary.csv')
    return 1 if failed else 0


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Set an event on Ctrl-C or SIGTERM. A second Ctrl-C raises ``KeyboardInterrupt``."""
    stopped = threading.Event()

    def stop(number: int, _: Any) -> None:
        stopped.set()
        signal.signal(number, earlier[signal.Signals(number)])
        print('\nfinishing what is being written; Ctrl-C again stops at once', file=sys.stderr, flush=True)

    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    earlier = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield stopped
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
