"""Time and memory of models side by side: same weights, same data, one process, taking turns."""

import contextlib
import copy
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import mmengine
import mmengine.hub
import mmseg
import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.structures import PixelData
from mmseg.registry import DATASETS, MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .. import __version__
from ..engine.precision import DTYPES, compile_parts, enable_amp
from ..errors import MissingFileError, UserError
from .baseline import heads, on_mmseg

MODES = ('forward', 'train', 'slide', 'tta', 'loader')
AMP_DTYPES = {name: getattr(torch, dtype) for name, dtype in DTYPES.items()}
TTA_RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # segm/eval/miou.py


@dataclass(frozen=True)
class Case:
    """What is measured, but for the model.

    Attributes:
        mode: one of ``MODES``. ``'forward'``: network without upsampling;
            ``'train'``: ``train_step`` with SGD; ``'slide'``: ``test_step``;
            ``'tta'``: ``test_step`` of ``SegTTAModel`` over 12 augmentations.
        size: height and width of the images.
        batch_size: images.
        num_classes: of all heads; None leaves the config's.
        amp: ``'bf16'``, ``'fp16'`` or None.
        compile: compile backbone and head.
    """

    mode: str
    size: tuple[int, int]
    batch_size: int = 1
    num_classes: int | None = None
    amp: str | None = None
    compile: bool = False


@dataclass
class Contender:
    """One of the models, and what was measured of it.

    Attributes:
        name: config, and the classes it runs on.
        config: of the model.
        baseline: the next side is the same model, with this one's weights.
        seconds: of each repetition.
        peak_gb: most memory of a process that only ran this (CPU: resident;
            GPU: allocated).
        model_gb: the same before the first image.
        parameters: number of them.
        gflops: of one forward pass (``'forward'`` only).
        peak_share: of the machine's matrix product (``'forward'`` only).
        agreement: with the baseline: largest difference of logits
            (``'forward'``), share of equal labels (``'slide'``, ``'tta'``),
            difference of the loss (``'train'``).
    """

    name: str
    config: ConfigDict
    baseline: bool = False
    seconds: list[float] = field(default_factory=list)
    peak_gb: float | None = None
    model_gb: float | None = None
    parameters: int = 0
    gflops: float | None = None
    peak_share: float | None = None
    agreement: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def device() -> str:
    return 'cuda' if torch.cuda.is_available() else 'cpu'


def contenders(
    config: str, against_mmseg: bool, num_classes: int | None = None, options: Any = None
) -> list[Contender]:
    """The model of a config, and before it, if asked for, the same on mmseg's classes.

    Raises:
        FileNotFoundError: no such config.
        ValueError: it has no model, or mmseg cannot build it.
    """
    cfg = _load(config, options)
    if 'model' not in cfg:
        raise UserError(f'{config} has no model')
    model = cfg.model
    model.pop('pretrained', None)
    model.setdefault('test_cfg', ConfigDict(mode='whole'))
    for key in ('init_cfg', 'pretrained'):  # speed needs no weights
        model.backbone.pop(key, None)
    if num_classes:
        for head in heads(model):
            head.num_classes = num_classes
    stem = os.path.splitext(os.path.basename(config))[0]
    ours = Contender(stem, model)
    if not against_mmseg:
        return [ours]
    # What mmseg does not know; the two would not compute the same.
    for key in ('size_divisor', 'upscale_small'):
        ours.config.test_cfg.pop(key, None)
    return [Contender(f'{stem} (mmseg)', on_mmseg(model), baseline=True), ours]


def _load(config: str, options: Any) -> Config:
    """A config file, or one of an OpenMMLab package: ``mmseg::fcn/...``."""
    if '::' in config:
        cfg = mmengine.hub.get_config(config)
    elif os.path.isfile(config):
        cfg = Config.fromfile(config)
    else:
        raise MissingFileError(f'config {config} not found (working directory: {os.getcwd()})')
    cfg.merge_from_dict(options or {})
    return cfg


class Workload:
    """A case on one model: call it to run once.

    Args:
        case: what to run.
        config: of the model.
        weights: state_dict to load, of a model of the same config.
    """

    def __init__(self, case: Case, config: ConfigDict, weights: dict[str, Tensor] | None = None) -> None:
        self.case = case
        torch.manual_seed(0)
        model = revert_sync_batchnorm(MODELS.build(copy.deepcopy(config)))
        if weights is not None:
            model.load_state_dict(weights, strict=True)
        self.model = model.to(device()).train(case.mode == 'train')
        if case.compile:
            compile_parts(self.model)
        generator = torch.Generator().manual_seed(1)
        self.images = [
            torch.randint(0, 256, (3, *case.size), dtype=torch.uint8, generator=generator)
            for _ in range(case.batch_size)
        ]
        self.labels = torch.randint(0, model.num_classes, (case.batch_size, 1, *case.size), generator=generator)
        sgd = dict(type='SGD', lr=1e-3, momentum=0.9, nesterov=True)
        training = Config(dict(optim_wrapper=dict(type='OptimWrapper', optimizer=sgd)))
        if case.amp and case.mode == 'train':
            enable_amp(training, case.amp)
        self.wrapper = build_optim_wrapper(self.model, training.optim_wrapper)
        self.tta = MODELS.build(dict(type='SegTTAModel', module=self.model)) if case.mode == 'tta' else None

    def _samples(self, size: tuple[int, int], flip: bool = False) -> list[SegDataSample]:
        info = dict(
            ori_shape=self.case.size,
            img_shape=size,
            pad_shape=size,
            flip=flip,
            flip_direction='horizontal' if flip else None,
            img_path='',
        )
        return [SegDataSample(metainfo=info, gt_sem_seg=PixelData(data=label)) for label in self.labels]

    def _augmented(self) -> dict[str, Any]:
        inputs, samples = [], []
        for ratio in TTA_RATIOS:
            size = (round(self.case.size[0] * ratio), round(self.case.size[1] * ratio))
            scaled = [
                nn.functional.interpolate(image[None].float(), size, mode='bilinear')[0].byte() for image in self.images
            ]
            for flip in (False, True):
                inputs.append([image.flip(2) if flip else image for image in scaled])
                samples.append(self._samples(size, flip))
        return dict(inputs=inputs, data_samples=samples)

    def autocast(self) -> Any:
        if self.case.amp is None:
            return contextlib.nullcontext()
        return torch.autocast(device(), AMP_DTYPES[self.case.amp])

    def __call__(self) -> Any:
        case, model = self.case, self.model
        data = dict(inputs=list(self.images), data_samples=self._samples(case.size))
        if case.mode == 'train':
            model.train_step(data, self.wrapper)
            return None
        with torch.no_grad(), self.autocast():
            if case.mode == 'tta':
                assert self.tta is not None
                return [r.pred_sem_seg.data.flatten().cpu() for r in self.tta.test_step(self._augmented())]
            if case.mode == 'slide':
                return [r.pred_sem_seg.data.flatten().cpu() for r in model.test_step(data)]
            inputs = torch.stack(self.images).float().to(device()) / 127.5 - 1
            return model(inputs, mode='tensor')

    @torch.no_grad()
    def loss(self) -> float:
        """Of the data, without dropout."""
        self.model.eval()
        data = dict(inputs=list(self.images), data_samples=self._samples(self.case.size))
        with self.autocast():
            losses = self.model(**self.model.data_preprocessor(data, True), mode='loss')
        self.model.train()
        return self.model.parse_losses(losses)[0].item()

    def gflops(self) -> float:
        """Of one forward pass, counted on plain matrix products (torch counts no fused attention on CPUs)."""
        inputs = torch.zeros(self.case.batch_size, 3, *self.case.size, device=device())
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            self.model.eval()(inputs, mode='tensor')
        return counter.get_total_flops() / 1e9


def timed(run: Callable[[], Any]) -> float:
    """Seconds of one call."""
    _synchronize()
    start = time.perf_counter()
    run()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if device() == 'cuda':
        torch.cuda.synchronize()


def matmul_peak(amp: str | None = None) -> float:
    """GFLOP/s of the best matrix product of this machine, in the dtype of the case."""
    dtype = AMP_DTYPES.get(amp or '', torch.float32)
    best = 0.0
    for n in (1024, 2048) if device() == 'cpu' else (4096, 8192):
        a, b = (torch.randn(n, n, device=device(), dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        repeats = max(1, int(2e10 / n**3)) if device() == 'cpu' else 20
        for _ in range(5):
            seconds = timed(lambda: [torch.mm(a, b, out=out) for _ in range(repeats)])  # noqa: B023
            best = max(best, 2 * n**3 * repeats / seconds / 1e9)
    return best


def memory_gb() -> float:
    """Most memory so far: resident on a CPU, allocated on a GPU."""
    if device() == 'cuda':
        return torch.cuda.max_memory_allocated() / 2**30
    if os.path.exists('/proc/self/status'):
        # not getrusage: there a process starts with the peak of the one that made it
        with open('/proc/self/status') as file:
            return next(int(line.split()[1]) for line in file if line.startswith('VmHWM')) / 2**20
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage / (2**30 if sys.platform == 'darwin' else 2**20)


def peak_in_a_process(case: Case, side: Contender) -> tuple[float, float]:
    """Memory of a process that runs one side twice and nothing else.

    Returns:
        GB with the model and the optimizer alone, and at most.
    """
    with tempfile.TemporaryDirectory() as folder:
        request = os.path.join(folder, 'request.pt')
        torch.save((asdict(case), side.config.to_dict()), request)
        code = 'import sys; from mmseg_segmenter.analysis.benchmark import _report_peak; _report_peak(sys.argv[1])'
        result = subprocess.run([sys.executable, '-c', code, request], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f'{side.name}: measuring memory failed:\n{result.stderr[-2000:]}')
    before, peak = result.stdout.strip().splitlines()[-1].split()
    return float(before), float(peak)


def _report_peak(request: str) -> None:
    prepare()
    # written by this process's parent; configs hold classes
    case, config = torch.load(request, weights_only=False)
    workload = Workload(Case(**case), ConfigDict(config))
    before = memory_gb()
    for _ in range(2):
        workload()
    print(before, memory_gb())


def prepare() -> None:
    """Register everything, as a runner would."""
    import mmseg_segmenter  # noqa: F401

    register_all_modules(init_default_scope=True)
    mmengine.logging.MMLogger.get_instance('mmengine').setLevel('WARNING')
    torch.backends.cudnn.benchmark = True


def compare(
    case: Case, models: list[Contender], repeats: int, with_memory: bool = True, peak: float | None = None
) -> None:
    """Measure models on a case, taking turns; the results are written into them.

    Args:
        case: what to run.
        models: the contenders; the one after a baseline has its weights.
        repeats: of each, after one to warm up.
        with_memory: also measure memory, in two more runs of their own process.
        peak: GFLOP/s of the machine, for ``peak_share``.
    """
    workloads: list[Workload] = []
    paired = [i > 0 and models[i - 1].baseline for i in range(len(models))]
    for i, side in enumerate(models):
        workloads.append(Workload(case, side.config, workloads[-1].model.state_dict() if paired[i] else None))
        side.parameters = sum(p.numel() for p in workloads[-1].model.parameters())
        side.seconds.clear()
    losses = [w.loss() for w in workloads] if case.mode == 'train' else []
    first = [w() for w in workloads]  # warms up, too
    for i, side in enumerate(models):
        side.agreement = _agreement(case, first[i - 1 : i + 1], losses[i - 1 : i + 1]) if paired[i] else None
    del first
    for _ in range(repeats):
        for side, workload in zip(models, workloads, strict=True):
            side.seconds.append(timed(workload))
    for side, workload in zip(models, workloads, strict=True):
        if case.mode == 'forward':
            side.gflops = workload.gflops()
            side.peak_share = None if peak is None else side.gflops / side.median / peak
    workloads.clear()
    for side in models:
        if with_memory:
            side.model_gb, side.peak_gb = peak_in_a_process(case, side)


def _agreement(case: Case, outputs: list[Any], losses: list[float]) -> float:
    if case.mode == 'train':
        return abs(losses[1] - losses[0])
    if case.mode == 'forward':
        return (outputs[1].float() - outputs[0].float()).abs().max().item()
    return torch.cat(outputs[1]).eq(torch.cat(outputs[0])).float().mean().item()


def table(case: Case, models: list[Contender]) -> str:
    """For the screen; ratios are to the first line."""
    head = f'{case.mode}, {case.size[0]}x{case.size[1]}, batch {case.batch_size}'
    head += f', {case.num_classes} classes' if case.num_classes else ''
    head += f', {case.amp}' if case.amp else ''
    head += ', compiled' if case.compile else ''
    agreement = dict(forward='max diff', train='loss diff').get(case.mode, 'equal px')
    rows = [['', 'median s', 'images/s', 'speed', 'peak GB', 'over model', 'params M', 'GFLOP', 'of peak', agreement]]
    base = models[0]
    for side in models:
        rows.append(
            [
                side.name,
                f'{side.median:.3f}',
                f'{case.batch_size / side.median:.2f}',
                f'{base.median / side.median:.2f}x',
                _number(side.peak_gb, '.2f'),
                _number(None if side.peak_gb is None or side.model_gb is None else side.peak_gb - side.model_gb, '.2f'),
                f'{side.parameters / 1e6:.1f}',
                _number(side.gflops, '.1f'),
                _number(side.peak_share, '.0%'),
                _number(side.agreement, '.2g' if case.mode in ('forward', 'train') else '.4%'),
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        '  '.join([row[0].ljust(widths[0])] + [cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)])
        for row in rows
    ]
    return '\n'.join([head, *lines])


def _number(value: float | None, style: str) -> str:
    return '-' if value is None else format(value, style)


def loader(config: str, options: Any = None, images: int = 50) -> list[tuple[str, float]]:
    """Milliseconds that each transform of the training pipeline takes for an image.

    Args:
        config: with a ``train_dataloader``; its dataset is read.
        options: overrides.
        images: how many are read.

    Raises:
        FileNotFoundError: config or dataset does not exist.
    """
    from ..engine import check_datasets

    cfg = _load(config, options)
    check_datasets(cfg, ('train_dataloader',))
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    transforms = dataset.pipeline.transforms
    seconds = [0.0] * len(transforms)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker
    try:
        for i in range(images + 2):
            data = dataset.get_data_info(i % len(dataset))
            for k, transform in enumerate(transforms):
                start = time.perf_counter()
                data = transform(data)
                seconds[k] += (time.perf_counter() - start) * (i >= 2)
    finally:
        torch.set_num_threads(threads)
    return [(type(t).__name__, s / images * 1e3) for t, s in zip(transforms, seconds, strict=True)]


def machine() -> dict[str, Any]:
    """What the figures were measured on, and with."""
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


def record(case: Case, models: list[Contender]) -> dict[str, Any]:
    """For the JSON file."""
    rows = []
    for side in models:
        row = {k: v for k, v in asdict(side).items() if k != 'config'}
        rows.append(row | dict(median=side.median, speed=models[0].median / side.median))
    return dict(case=asdict(case), contenders=rows)


def write_json(path: str, records: list[dict[str, Any]], peak: float | None) -> None:
    """Machine, versions and every figure."""
    with open(path, 'w') as file:
        json.dump(dict(machine=machine(), matmul_gflops=peak, records=records), file, indent=1)


def plot(path: str, records: list[dict[str, Any]]) -> None:
    """Time and memory against the number of pixels, one line for each model and batch size, classes and precision."""
    from ..visualization.plots import new_figure

    lines: dict[str, list[tuple[float, float, float | None]]] = {}
    varied = [key for key in records[0]['case'] if key != 'size' and len({r['case'][key] for r in records}) > 1]
    for r in records:
        megapixels = r['case']['size'][0] * r['case']['size'][1] / 1e6
        for side in r['contenders']:
            name = ', '.join([side['name'], *(f'{key} {r["case"][key]}' for key in varied)])
            lines.setdefault(name, []).append((megapixels, side['median'], side['peak_gb']))
    figure = new_figure(9, 4)
    time_axis, memory_axis = figure.subplots(1, 2)
    for name, points in lines.items():
        megapixels, seconds, memory = zip(*sorted(points), strict=True)
        time_axis.plot(megapixels, seconds, 'o-', label=name)
        if None not in memory:
            memory_axis.plot(megapixels, memory, 'o-', label=name)
    for axis, label in ((time_axis, 'seconds'), (memory_axis, 'peak memory, GB')):
        axis.set(xlabel='image size, megapixels', ylabel=label, ylim=(0, None))
        axis.grid(alpha=0.3)
    figure.legend(*time_axis.get_legend_handles_labels(), loc='outside lower center', ncols=2)
    figure.savefig(path, dpi=120)
