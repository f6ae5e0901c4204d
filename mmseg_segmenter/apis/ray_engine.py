"""Segment inputs on a Ray cluster, with one model per worker.

Ray Data starts the workers, gives them work and starts them again. This module
adds what it leaves open: which inputs are done, an input that kills each
worker it meets, and the tables at the end.
"""

import argparse
import itertools
import json
import logging
import math
import os
import socket
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from ..errors import MissingPackageError, UserError
from .command import Progress, Work, make_pipeline, make_predictor, plan, report, summarize
from .distributed import file_size, largest_first
from .inputs import Task
from .journal import Result
from .outputs import OutputSpec
from .storage import is_uri, join, write_file

_CHUNK_INPUTS, _CHUNK_BYTES = 32, 256 << 20  # of the inputs that a worker gets at once
_CONNECT = 10  # seconds to wait for the cluster
_VISIBLE = 10  # seconds until a file that another machine wrote must be seen, through the cache of a file system
_COLUMN = 'json'
_ROW_GROUP = 10_000  # rows of the manifest that are in memory at once


class _Room(NamedTuple):
    """The workers that a cluster has room for.

    Attributes:
        gpus: of each worker.
        workers: number of them.
    """

    gpus: int
    workers: int


def predict_on_ray(args: argparse.Namespace) -> int:
    """Segment the inputs of a command line on a Ray cluster.

    Workers write the results; this process notes them in the journal. If a
    worker or a node is lost, others do what it had not finished. An input that
    is lost again when a worker has it alone is one that failed.

    Args:
        args: of ``tools/predict.py``.

    Returns:
        The exit code: 0, 1 if an input failed, 130 after Ctrl-C.

    Raises:
        UserError: an argument is not usable, the cluster is not reachable, or
            no worker starts.
    """
    try:
        import pyarrow  # noqa: F401
        import ray.data
    except ImportError as error:
        raise MissingPackageError(
            f"--engine ray needs ray[data] ({error}); pip install 'mmseg_segmenter[ray]'"
        ) from None

    if args.launcher != 'none':
        raise UserError('--engine ray starts the processes itself; expected no --launcher (dist_predict.sh)')
    if args.cpus_per_worker < 1:
        raise UserError(f'--cpus-per-worker {args.cpus_per_worker}; expected at least 1')
    work = plan(args)
    if cameras := [task.source for task in work.todo if task.kind == 'camera']:
        raise UserError(f'{cameras[0]}: expected --engine local, as a camera belongs to one machine')
    # A wrong config, checkpoint or option ends the run here, in one line.
    predictor = make_predictor(argparse.Namespace(**{**vars(args), 'device': 'cpu', 'amp': False, 'compile': False}))
    make_pipeline(args, predictor, work.outputs)
    room = None
    if work.todo:
        connect(args.address)
        room = _room(args)
    if args.force:
        work.journal.clear()
    progress = Progress(len(work.todo))
    try:
        for result in _rounds(args, work, room) if room is not None else ():
            work.journal.write(result)
            work.results[result.source] = result
            progress.update(result)
    except KeyboardInterrupt:
        pass
    finally:
        progress.close()
        work.journal.flush()
        summarize(work, args.out, predictor.classes.names)
        write_manifest(work, args.out)
        ray.shutdown()
    print(progress.summary())
    return report(work, args.out)


def connect(address: str | None) -> None:
    """Connect to a Ray cluster; without an address, start one on this machine.

    Args:
        address: ``host:port``, ``'auto'``, or None for that in the variable
            ``RAY_ADDRESS``, if it is set.

    Raises:
        UserError: the cluster is not reachable.
    """
    import ray

    os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
    os.environ.setdefault('RAY_BACKEND_LOG_LEVEL', 'fatal')  # else it prints what is no error here
    address = address or os.environ.get('RAY_ADDRESS') or None
    options: dict[str, Any] = dict(include_dashboard=False) if address is None else dict(address=address)
    try:
        if address is not None and (port := address.rpartition(':')[2]).isdigit():
            # Ray itself tries for many minutes.
            socket.create_connection((address.rpartition(':')[0], int(port)), timeout=_CONNECT).close()
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f'--address {address}: no Ray cluster answers ({" ".join(str(error).split())[:200]})') from None


def _rounds(args: argparse.Namespace, work: Work, room: _Room) -> Iterator[Result]:
    """Yield a result for each task that is to do.

    If a worker dies, Ray starts another one, but does not give it the same
    inputs: one that kills its worker would do so without end. They are done in
    another round, each alone.
    """
    from ray.exceptions import RayError

    todo, alone = largest_first(work.todo), False
    while todo:
        left = {task.source: task for task in todo}
        error: Exception | None = None
        try:
            for result in _run(args, work.outputs, todo, room, alone):
                if not is_uri(args.out):
                    _check_files(result, work.outputs)
                if left.pop(result.source, None) is not None:
                    yield result
        except RayError as failure:
            error = failure
        if len(left) == len(todo):
            if error is not None:
                raise UserError(f'no Ray worker could segment an input: {_last_line(error)}')
            if alone:
                lost = 'the worker process died on this input twice (out of memory?)'
                yield from (Result(task.source, task.name, status='failed', error=lost) for task in todo)
                return
        todo, alone = list(left.values()), True


def _run(
    args: argparse.Namespace, outputs: OutputSpec, tasks: Sequence[Task], room: _Room, alone: bool
) -> Iterator[Result]:
    """Give tasks to workers once; yield the results of those whose worker did not die."""
    import ray
    from ray.util.annotations import RayDeprecationWarning

    warnings.simplefilter('ignore', RayDeprecationWarning)  # of max_task_retries, which Ray 2.64 will name otherwise
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1
    logging.getLogger('ray.data').setLevel(logging.CRITICAL)
    chunks = [[task] for task in tasks] if alone else list(_chunks(tasks, -(-len(tasks) // (4 * room.workers))))
    items = [{_COLUMN: json.dumps(chunk)} for chunk in chunks]
    found = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Worker,
        fn_constructor_args=(args, outputs, os.getcwd()),
        batch_size=1,
        num_gpus=room.gpus,
        num_cpus=args.cpus_per_worker,
        # With fewer workers than the cluster had, the run goes on after the loss of a node; more start on new nodes.
        compute=ray.data.ActorPoolStrategy(
            min_size=1, initial_size=min(room.workers, len(items)), max_tasks_in_flight_per_actor=1 if alone else 2
        ),
        max_task_retries=0,
    )
    for row in found.iter_rows():
        yield Result.from_row(json.loads(row[_COLUMN]))


class _Worker:
    """Segment chunks of tasks with one model. An instance lives in each worker process.

    Args:
        args: of ``tools/predict.py``.
        outputs: what to write.
        folder: working directory of the command, to which paths are relative.
    """

    def __init__(self, args: argparse.Namespace, outputs: OutputSpec, folder: str) -> None:
        with suppress(OSError):  # on a machine without it, inputs at URIs and absolute paths work
            os.chdir(folder)
        self._pipeline = make_pipeline(args, make_predictor(args), outputs)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Return the results for a chunk, as JSON: a row each."""
        tasks = [Task(*fields) for chunk in batch[_COLUMN] for fields in json.loads(chunk)]
        return {_COLUMN: [result.to_json() for result in self._pipeline.run(tasks)]}


def _room(args: argparse.Namespace) -> _Room:
    """Return what the cluster has room for.

    Raises:
        UserError: not for one worker.
    """
    import ray

    nodes = [node['Resources'] for node in ray.nodes() if node['Alive']]
    gpus = int(args.device != 'cpu' and any(node.get('GPU', 0) >= 1 for node in nodes))
    count = [
        min(node.get('CPU', 0) // args.cpus_per_worker, node.get('GPU', 0) if gpus else math.inf) for node in nodes
    ]
    if sum(map(int, count)) == 0:
        most = int(max(node.get('CPU', 0) for node in nodes))
        raise UserError(f'--cpus-per-worker {args.cpus_per_worker}; expected at most {most}, the CPUs of a node')
    return _Room(gpus, sum(map(int, count)))


def _chunks(tasks: Sequence[Task], most: int) -> Iterator[list[Task]]:
    """Cut tasks into chunks that are neither long nor large."""
    chunk: list[Task] = []
    size = 0
    for task in tasks:
        chunk.append(task)
        size += file_size(task)
        if len(chunk) >= min(most, _CHUNK_INPUTS) or size > _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _check_files(result: Result, outputs: OutputSpec) -> None:
    """Refuse to go on if what a worker wrote is not in the folder that this process sees.

    Raises:
        UserError: the folder is not shared.
    """
    for path in map(outputs.path, result.files):
        end = time.monotonic() + _VISIBLE
        while not os.path.exists(path):
            if time.monotonic() > end:
                raise UserError(
                    f'{path} was written on another machine, and is not here; expected an --out that all machines '
                    'share, or a URI'
                )
            time.sleep(0.1)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()[:500]


def write_manifest(work: Work, folder: str) -> None:
    """Write ``manifest.parquet``: a row per input, as in ``summary.csv``, with pixels per class and written files.

    Args:
        work: with the results.
        folder: of the results, local or a URI.

    Raises:
        FileAccessError: it cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    text, number = pa.string(), pa.int64()
    types = dict(height=number, width=number, pixels=pa.list_(number), seconds=pa.float64(), files=pa.list_(text))
    schema = pa.schema([(name, types.get(name, text)) for name in Result._fields])

    def write(path: str) -> None:
        rows = (result._asdict() for result in work.found())
        with parquet.ParquetWriter(path, schema) as writer:
            while group := list(itertools.islice(rows, _ROW_GROUP)):
                writer.write_table(pa.Table.from_pylist(group, schema=schema))

    write_file(join(folder, 'manifest.parquet'), write)
