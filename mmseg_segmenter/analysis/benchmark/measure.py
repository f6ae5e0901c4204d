"""Time, memory and agreement of the contenders in a case."""

import contextlib
import gc
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mmseg
import torch
from mmengine.config import ConfigDict
from torch import Tensor

from ... import __version__
from ...errors import UserError
from .cases import DTYPES, VARIANTS, Case, Contender
from .networks import size_mb, write_network
from .workload import Workload, device, float32_products, prepare

LEAST_ROUNDS = 3
_SETTLE_SECONDS = 0.3


def timed(run: Callable[[], Any]) -> float:
    """Return the seconds that a call takes, on a GPU until its last kernel has ended."""
    if device() == 'cpu':
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def matmul_peak(dtype: str = 'float32', sizes: Sequence[int] | None = None) -> float:
    """Measure the best matrix product of this machine in GFLOP/s.

    Args:
        dtype: one of ``DTYPES``.
        sizes: sides of the matrices to try; default two that suit the device.
    """
    best = 0.0
    for n in sizes or ((1024, 2048) if device() == 'cpu' else (4096, 8192)):
        a, b = (torch.randn(n, n, device=device(), dtype=DTYPES[dtype]) for _ in range(2))
        out = torch.empty_like(a)
        repeats = min(20, max(1, int(2e10 / n**3))) if device() == 'cpu' else 20
        with float32_products(dtype == 'tf32'):
            for _ in range(5):
                seconds = timed(lambda: [torch.mm(a, b, out=out) for _ in range(repeats)])  # noqa: B023
                best = max(best, 2 * n**3 * repeats / seconds / 1e9)
    return best


@dataclass
class _Entry:
    """A contender on its way through a case.

    Attributes:
        side: the contender.
        workload: None before it is built and after it failed.
        output: of the first run, on the CPU.
        loss: before the first training step.
        own_bytes: GPU memory that this contender holds between runs.
    """

    side: Contender
    workload: Workload | None = None
    output: Any = None
    loss: float | None = None
    own_bytes: int = 0


def compare(
    case: Case,
    models: list[Contender],
    repeats: int,
    with_memory: bool = True,
    peak: float | None = None,
    seconds: float | None = None,
    keep_going: bool = False,
) -> None:
    """Measure models in a case, taking turns, and write the results into them.

    A model that runs out of memory gets an ``error`` and the others go on.

    Args:
        case: what to run.
        models: the contenders.
        repeats: timed runs of each, after the ones to warm up.
        with_memory: also measure the peak memory: on a GPU in a run of its
            own, on a CPU in two more runs in a process of their own.
        peak: GFLOP/s of the machine, for ``peak_share``.
        seconds: stop repeating after this time, but not before
            ``LEAST_ROUNDS`` rounds.
        keep_going: note any exception of a model as its ``error``.
    """
    if case.compile or any(VARIANTS[side.variant].compile for side in models):
        torch.compiler.reset()  # models of earlier cases would count towards the limit of recompilations
    with tempfile.TemporaryDirectory() as folder:
        _compare(case, models, repeats, with_memory, peak, seconds, keep_going, folder)


def _compare(
    case: Case,
    models: list[Contender],
    repeats: int,
    with_memory: bool,
    peak: float | None,
    seconds: float | None,
    keep_going: bool,
    folder: str,
) -> None:
    entries = [_Entry(side) for side in models]
    _build_all(case, entries, keep_going, folder)
    if case.mode == 'train':
        for entry in entries:
            _attempt(entry, _measure_loss, keep_going)
    for entry in entries:
        _attempt(entry, _run_first, keep_going)
    _compare_outputs(case, entries)
    _compare_labels(case, entries)
    if with_memory and device() == 'cuda':
        for entry in entries:
            _attempt(entry, _measure_gpu_memory, keep_going)
    _take_turns(entries, repeats, seconds, keep_going)
    for side in models:
        if peak is not None and side.gflops is not None and side.median is not None:
            side.peak_share = side.gflops / side.median / peak
    del entries
    _release()
    if with_memory and device() == 'cpu':
        for side in models:
            if side.error is None:
                side.model_gb, side.peak_gb = peak_in_a_process(case, side)


def _build_all(case: Case, entries: list[_Entry], keep_going: bool, folder: str) -> None:
    weights, leader = None, None

    def build(entry: _Entry) -> None:
        before = _allocated()
        if VARIANTS[entry.side.variant].runtime != 'torch' and entry.side.network is None:
            if leader is None:
                raise UserError(f'{entry.side.name}: no model before it in torch, from which its network is made')
            images = leader.calibration_images()
            entry.side.network = write_network(leader.model, entry.side.variant, folder, images)
            entry.side.file_mb = size_mb(entry.side.network)
        entry.workload = Workload(case, entry.side, weights if entry.side.shares_weights else None)
        entry.own_bytes = _allocated() - before
        entry.side.parameters = sum(p.numel() for p in entry.workload.model.parameters())
        entry.side.gflops = entry.workload.gflops

    for entry in entries:
        entry.side.seconds.clear()
        entry.side.error = None
        _attempt(entry, build, keep_going)
        if not entry.side.shares_weights:
            leader = entry.workload
            weights = None if leader is None else leader.model.state_dict()


def _attempt(entry: _Entry, step: Callable[[_Entry], None], keep_going: bool) -> None:
    """Run a step of a contender that has not failed; if it fails, note why and drop its model."""
    if entry.side.error is not None:
        return
    try:
        step(entry)
        return
    except Exception as error:
        message = str(error).strip()
        out_of_memory = isinstance(error, torch.OutOfMemoryError) or 'out of memory' in message
        if not out_of_memory and not keep_going:
            raise
        reason = f'{type(error).__name__}: {message.splitlines()[0][:300] if message else ""}'
        entry.side.error = 'out of memory' if out_of_memory else reason
        entry.workload = None
    # only here is the exception gone, and with it the tensors of its frames
    _release()


def _release() -> None:
    gc.collect()
    if device() == 'cuda':
        torch.cuda.empty_cache()


def _measure_loss(entry: _Entry) -> None:
    assert entry.workload is not None
    entry.loss = entry.workload.loss()


def _run_first(entry: _Entry) -> None:
    """Warm up; this is the run that compiles and chooses algorithms."""
    assert entry.workload is not None
    before, started = _allocated(), time.perf_counter()
    output = entry.workload()
    if isinstance(output, Tensor):
        entry.output = output.cpu()
    elif output is not None:
        entry.output = torch.cat(output).cpu()
    if device() == 'cuda':
        torch.cuda.synchronize()
    entry.side.first_seconds = time.perf_counter() - started
    del output
    entry.own_bytes += _allocated() - before  # what stays: gradients, momentum


def _compare_outputs(case: Case, entries: list[_Entry]) -> None:
    leader: _Entry | None = None
    for entry in entries:
        entry.side.agreement = None
        if not entry.side.shares_weights:
            leader = entry
        elif leader is not None and entry.workload is not None and entry.workload.loaded:
            entry.side.agreement = _agreement(case, leader, entry)
    for entry in entries:
        entry.output = None


def _compare_labels(case: Case, entries: list[_Entry]) -> None:
    """Compare the labels of the images of a case with those of the first model."""
    working = [entry for entry in entries if entry.workload is not None]
    if not case.images or not working:
        return
    equal = dict.fromkeys(range(1, len(working)), 0.0)
    for path in case.images:
        expected, *found = (entry.workload.segment(path) for entry in working if entry.workload is not None)
        for i, labels in enumerate(found, 1):
            equal[i] += labels.eq(expected).float().mean().item()
    for i, share in equal.items():
        working[i].side.equal_labels = share / len(case.images)


def _agreement(case: Case, one: _Entry, other: _Entry) -> float | None:
    if case.mode == 'train':
        return None if one.loss is None or other.loss is None else abs(other.loss - one.loss)
    a, b = one.output, other.output
    if a is None or b is None:
        return None
    if case.mode not in ('forward', 'backbone'):
        return b.eq(a).float().mean().item()
    if a.shape != b.shape:  # (B, C, h, w) and (B, N, C)
        a, b = (x.flatten(2).transpose(1, 2) if x.ndim == 4 else x for x in (a, b))
    return (b.float() - a.float()).abs().max().item()


def _measure_gpu_memory(entry: _Entry) -> None:
    """Measure the peak of one more run, less what the other contenders hold meanwhile."""
    assert entry.workload is not None
    torch.cuda.synchronize()
    others = _allocated() - entry.own_bytes
    torch.cuda.reset_peak_memory_stats()
    entry.workload()
    torch.cuda.synchronize()
    entry.side.model_gb = entry.own_bytes / 2**30
    entry.side.peak_gb = (torch.cuda.max_memory_allocated() - others) / 2**30


def _take_turns(entries: list[_Entry], repeats: int, seconds: float | None, keep_going: bool) -> None:
    # Each runtime has threads of its own, which wait for work by spinning, and weights of its own in the caches.
    several = len({VARIANTS[entry.side.variant].runtime for entry in entries}) > 1

    def repeat(entry: _Entry) -> None:
        assert entry.workload is not None
        if several:
            time.sleep(_SETTLE_SECONDS)
            entry.workload()
        entry.side.seconds.append(timed(entry.workload))

    started = time.perf_counter()
    for i in range(repeats):
        if seconds is not None and i >= LEAST_ROUNDS and time.perf_counter() - started > seconds:
            break
        for entry in entries:
            _attempt(entry, repeat, keep_going)


def _allocated() -> int:
    return torch.cuda.memory_allocated() if device() == 'cuda' else 0


def memory_gb() -> float:
    """Return the peak of this process's resident memory in GB."""
    if os.path.exists('/proc/self/status'):
        # not getrusage: there a process starts with the peak of the one that made it
        with open('/proc/self/status') as file:
            return next(int(line.split()[1]) for line in file if line.startswith('VmHWM')) / 2**20
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage / (2**30 if sys.platform == 'darwin' else 2**20)


def peak_in_a_process(case: Case, side: Contender) -> tuple[float, float]:
    """Measure the resident memory of a process that runs one contender twice and nothing else.

    Returns:
        GB with the model and the optimizer alone, and the peak.
    """
    with tempfile.TemporaryDirectory() as folder:
        request = os.path.join(folder, 'request.pt')
        torch.save((asdict(case), dict(asdict(side), config=side.config.to_dict())), request)
        code = (
            'import sys; from mmseg_segmenter.analysis.benchmark.measure import _report_peak; _report_peak(sys.argv[1])'
        )
        result = subprocess.run([sys.executable, '-c', code, request], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f'{side.name}: measuring memory failed:\n{result.stderr[-2000:]}')
    before, peak = result.stdout.strip().splitlines()[-1].split()
    return float(before), float(peak)


def _report_peak(request: str) -> None:
    prepare()
    # written by this process's parent; configs hold classes
    case, side = torch.load(request, weights_only=False)
    workload = Workload(Case(**case), Contender(**{**side, 'config': ConfigDict(side['config'])}), count_flops=False)
    _forget_peak()
    before = memory_gb()
    for _ in range(2):
        workload()
    print(before, memory_gb())


def _forget_peak() -> None:
    """Begin a new peak of memory: what builds a model is no part of running it."""
    gc.collect()
    with contextlib.suppress(OSError), open('/proc/self/clear_refs', 'w') as file:
        file.write('5')


def machine() -> dict[str, Any]:
    """Return the device and the versions that figures were measured with."""
    cpu = platform.processor() or platform.machine()
    if os.path.exists('/proc/cpuinfo'):
        with open('/proc/cpuinfo') as file:
            cpu = next((line.split(':')[1].strip() for line in file if line.startswith('model name')), cpu)
    return dict(
        device=torch.cuda.get_device_name() if device() == 'cuda' else cpu,
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=torch.__version__,
        mmsegmentation=mmseg.__version__,
        mmseg_segmenter=__version__,
    )
