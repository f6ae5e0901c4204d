"""Segment many inputs: reading, the model and writing at the same time."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from typing import NamedTuple

import torch

from ..errors import UserError
from .inputs import RASTER_PIXELS, Header, Task, read_header
from .journal import Result
from .outputs import OutputSpec
from .prediction import Prediction
from .predictor import Predictor, Prepared

INTERRUPTED = 'interrupted'  # the error of an input on which the work was stopped
_BYTES = 1 << 30  # that images take which are read, segmented or written at the same time
_AHEAD = 4  # batches that are read ahead, so that images of one size find each other


class Stopped(Exception):  # noqa: N818  no error
    """A run was asked to stop while it worked on an input."""


# For inputs that are no single image: segments the input of a task and returns its result. The number is that of images
# per forward pass. It calls its last argument with the share that is done, 0 to 1, every few seconds; that call raises
# Stopped, which it lets pass.
Handler = Callable[[Predictor, Task, OutputSpec, int, Callable[[float], None]], Result]


def _segment_raster(
    predictor: Predictor, task: Task, outputs: OutputSpec, batch_size: int, progress: Callable[[float], None]
) -> Result:
    from .raster import segment_raster

    file = outputs.file('labels', task.name, '.tif')
    options = {key: outputs.options[key] for key in ('bands', 'value_range') if key in outputs.options}
    found = segment_raster(predictor, task.source, outputs.path(file), progress=progress, **options)
    return Result(
        task.source,
        task.name,
        'raster',
        height=found.height,
        width=found.width,
        pixels=tuple(found.pixels.tolist()),
        files=(file,),
    )


def _segment_video(
    predictor: Predictor, task: Task, outputs: OutputSpec, batch_size: int, progress: Callable[[float], None]
) -> Result:
    from .video import segment_video

    return segment_video(predictor, task, outputs, batch_size, progress)


# By the kind of a task.
HANDLERS: dict[str, Handler] = {
    'raster': _segment_raster,
    'video': _segment_video,
    'animation': _segment_video,
    'camera': _segment_video,
}


class _Read(NamedTuple):
    """An image in memory, an input of another kind (which is not read yet), or an error."""

    task: Task
    bytes: int
    seconds: float = 0.0
    prepared: Prepared | None = None
    error: str = ''


class _Memory:
    """Bytes that images in work take."""

    def __init__(self) -> None:
        self.held = 0

    def fits(self, size: int) -> bool:
        return self.held == 0 or self.held + size <= _BYTES


class Pipeline:
    """Segment inputs with one model, and write the results.

    Threads read and write images while the model runs. Images of one size
    share batches. An input that fails becomes a result with its error, and
    the others go on. Memory is bounded, whatever the number of inputs.

    Example::

        pipeline = Pipeline(Predictor('config.py', 'checkpoint.pth'), OutputSpec('results'))
        for result in pipeline.run(find_tasks(['images'])):
            print(result.source, result.status)

    Args:
        predictor: the model.
        outputs: what to write.
        batch_size: images per forward pass.
        readers: threads that read images.
        writers: threads that write results.
        progress: called with a task that takes long and the share of it that
            is done, 0 to 1.

    Attributes:
        model_seconds: time that the model has taken so far.
    """

    def __init__(
        self,
        predictor: Predictor,
        outputs: OutputSpec,
        batch_size: int = 1,
        readers: int = 2,
        writers: int = 2,
        progress: Callable[[Task, float], None] | None = None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f'batch_size={batch_size}; expected at least 1')
        self.predictor, self.outputs, self.batch_size = predictor, outputs, batch_size
        self.model_seconds = 0.0
        self._readers, self._writers, self._progress = readers, writers, progress
        # The image, the network's input, labels, an overlay; and what is computed on demand.
        self._pixel_bytes = 16 + 2 * len(predictor.classes) * ('probabilities' in outputs.kinds)

    def run(self, tasks: Iterable[Task], stop: Callable[[], bool] = lambda: False) -> Iterator[Result]:
        """Segment the inputs of tasks.

        Args:
            tasks: with names that are unique.
            stop: when it returns True, no further input is begun; those whose
                results are being written are finished.

        Yields:
            A result for each task, when its files are written; not always in
            the order of the tasks.
        """
        memory = _Memory()
        writes: deque[tuple[Future[Result], int]] = deque()
        with ThreadPoolExecutor(self._readers) as reading, ThreadPoolExecutor(self._writers) as writing:
            for batch in self._batches(self._read_ahead(tasks, reading, memory)):
                if stop():
                    break
                for read in batch:
                    if read.prepared is None:
                        memory.held -= read.bytes
                        yield self._run_handler(read, stop)
                for read, found in self._segment([read for read in batch if read.prepared is not None]):
                    writes.append((writing.submit(self._write, read, found), read.bytes))
                wait = not batch  # memory is full
                while writes and (wait or writes[0][0].done() or len(writes) > 2 * (self._writers + self.batch_size)):
                    future, size = writes.popleft()
                    result, wait = future.result(), False
                    memory.held -= size
                    yield result
            for future, _ in writes:
                yield future.result()

    def _read_ahead(self, tasks: Iterable[Task], pool: ThreadPoolExecutor, memory: _Memory) -> Iterator[_Read | None]:
        """Read images in threads; yield them in order, and None when memory has no room for another one."""
        entries = map(self._plan, tasks)
        entry = next(entries, None)
        reads: deque[Future[_Read]] = deque()
        try:
            while entry is not None or reads:
                while entry is not None and len(reads) < self._readers + self.batch_size and memory.fits(entry.bytes):
                    memory.held += entry.bytes
                    reads.append(pool.submit(self._read, entry))
                    entry = next(entries, None)
                yield reads.popleft().result() if reads else None
        finally:
            for read in reads:
                read.cancel()

    def _plan(self, task: Task) -> _Read:
        """Return the kind of an input and the memory that it will take, as far as its header tells."""
        if task.kind not in ('auto', 'image'):
            return _Read(task, 0)
        header = read_header(task.source) or Header(0)
        if task.kind == 'auto' and (header.georeferenced or (header.pixels > RASTER_PIXELS and self._has_rasters())):
            return _Read(task._replace(kind='raster'), 0)
        if task.kind == 'auto' and header.animated:
            return _Read(task._replace(kind='animation'), 0)
        return _Read(task._replace(kind='image'), header.pixels * self._pixel_bytes)

    def _has_rasters(self) -> bool:
        return find_spec('rasterio') is not None and self.predictor.model.test_cfg.get('mode') == 'slide'

    def _read(self, entry: _Read) -> _Read:
        if entry.task.kind != 'image':
            return entry
        start = time.perf_counter()
        try:
            prepared = self.predictor.prepare(entry.task.source)
        except Exception as error:  # one bad file does not stop the others, whatever a decoder raises
            return entry._replace(error=_explain(error))
        return entry._replace(prepared=prepared, seconds=time.perf_counter() - start)

    def _batches(self, reads: Iterable[_Read | None]) -> Iterator[list[_Read]]:
        """Yield images of one shape together, others alone, and an empty batch to wait for memory."""
        groups: dict[tuple[int, ...], list[_Read]] = {}
        for read in reads:
            if read is None:
                yield groups.pop(next(iter(groups))) if groups else []
            elif read.prepared is None:
                yield [read]
            else:
                group = groups.setdefault(read.prepared.shape, [])
                group.append(read)
                if len(group) == self.batch_size:
                    yield groups.pop(read.prepared.shape)
                elif sum(map(len, groups.values())) >= _AHEAD * self.batch_size:
                    yield groups.pop(max(groups, key=lambda shape: len(groups[shape])))
        yield from groups.values()

    def _segment(self, batch: Sequence[_Read]) -> Iterator[tuple[_Read, Prediction | None]]:
        """Run the model. If it fails on a batch, each image is tried alone."""
        if not batch:
            return
        start = time.perf_counter()
        error = ''
        try:
            predictions = self.predictor.segment([read.prepared for read in batch if read.prepared is not None])
        except Exception as failure:
            error = _explain(failure)
        seconds = time.perf_counter() - start
        self.model_seconds += seconds
        if not error:
            for read, prediction in zip(batch, predictions, strict=True):
                if 'probabilities' not in self.outputs.kinds:
                    prediction.forget_scores()
                yield read._replace(seconds=read.seconds + seconds / len(batch)), prediction
            return
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(batch) == 1:
            yield batch[0]._replace(error=error), None
        else:
            for read in batch:
                yield from self._segment([read])

    def _write(self, read: _Read, prediction: Prediction | None) -> Result:
        result = Result(read.task.source, read.task.name, read.task.kind)
        if prediction is None:
            return result._replace(status='failed', error=read.error)
        start = time.perf_counter()
        height, width = prediction.labels.shape
        result = result._replace(height=height, width=width)
        try:
            files = self.outputs.write(prediction, read.task.name)
            pixels = tuple(prediction.class_pixels.tolist())
        except Exception as error:
            return result._replace(status='failed', error=_explain(error))
        seconds = read.seconds + time.perf_counter() - start
        return result._replace(pixels=pixels, files=files, seconds=seconds)

    def _run_handler(self, read: _Read, stop: Callable[[], bool]) -> Result:
        task = read.task
        failed = Result(task.source, task.name, task.kind, 'failed')
        if read.error:
            return failed._replace(error=read.error)

        def progress(share: float) -> None:
            if stop():
                raise Stopped
            if self._progress is not None:
                self._progress(task, share)

        start = time.perf_counter()
        try:
            result = HANDLERS[task.kind](self.predictor, task, self.outputs, self.batch_size, progress)
        except Stopped:
            return failed._replace(error=INTERRUPTED)
        except Exception as error:
            return failed._replace(error=_explain(error))
        seconds = time.perf_counter() - start
        self.model_seconds += seconds
        return result._replace(seconds=seconds)


def _explain(error: Exception) -> str:
    """Return an error as one line."""
    text = ' '.join(str(error).split()) or 'no message'
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or 'not enough memory' in text:
        return f'out of memory; try --batch-size 1, --window-batch-size 1, --amp or --raster ({text[:120]})'
    return text if isinstance(error, UserError) else f'{type(error).__name__}: {text[:300]}'
