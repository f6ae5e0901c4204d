"""What the report measures, the most important first."""

import copy
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import mmseg_segmenter

from ...datasets.shapes import make_shapes
from .. import benchmark
from .runner import Results, Step

_PACKAGE = Path(mmseg_segmenter.__file__).parent
_CONFIGS = _PACKAGE / '.mim' / 'configs' / 'segmenter'
_SIZES = dict(T='t', S='s', B='b', L='l')
LIBRARIES = ('timm', 'transformers')
_WHOLE_MODELS = ('mmseg',)


@dataclass(frozen=True)
class Settings:
    """How large the measurements are.

    Attributes:
        configs: path of the config of each model.
        crops: side in pixels of the square images of each model.
        options: overrides of config entries.
        batch_sizes: numbers of images; ``few``, ``middle`` and ``many`` are
            among them.
        image: height and width for sliding windows.
        large_image: the same, for the memory of sliding windows.
        tta_image: the same, for test-time augmentation.
        peak_sizes: sides of the matrices of the best product; None for the
            device's default.
        repeats: the most timed runs of each contender.
        seconds: time after which a case is repeated no more.
        loader_images: number of images that the training pipeline reads.
        loader_size: their height and width.
    """

    configs: Mapping[str, str] = field(
        default_factory=lambda: {
            name: str(_CONFIGS / f'segmenter_vit-{letter}_mask_8xb2-160k_ade20k{"-640x640" if name == "L" else ""}.py')
            for name, letter in _SIZES.items()
        }
    )
    crops: Mapping[str, int] = field(default_factory=lambda: dict(T=512, S=512, B=512, L=640))
    options: Mapping[str, Any] = field(default_factory=dict)
    batch_sizes: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)
    few: int = 1
    middle: int = 8
    many: int = 64
    image: tuple[int, int] = (1024, 2048)
    large_image: tuple[int, int] = (3648, 5472)
    tta_image: tuple[int, int] = (512, 683)
    peak_sizes: Sequence[int] | None = None
    repeats: int = 30
    seconds: float = 2.0
    loader_images: int = 30
    loader_size: tuple[int, int] = (512, 683)


def smoke_settings() -> Settings:
    """Return settings that take seconds on a CPU."""
    head = dict(in_channels=16, embed_dims=16, num_heads=2, num_layers=1, num_classes=5)
    backbone = dict(embed_dims=16, num_heads=2, num_layers=1)
    configs = Settings().configs
    options: dict[str, Any] = {f'model.backbone.{key}': value for key, value in backbone.items()}
    options |= {f'model.decode_head.{key}': value for key, value in head.items()}
    options |= {'model.test_cfg.crop_size': (32, 32), 'model.test_cfg.stride': (24, 24)}
    options['model.data_preprocessor.size'] = (32, 32)
    return Settings(
        configs={name: configs[name] for name in 'BL'},
        crops=dict.fromkeys('BL', 32),
        options=options,
        batch_sizes=(1, 2),
        middle=1,
        many=2,
        image=(40, 72),
        large_image=(56, 88),
        tta_image=(40, 48),
        peak_sizes=(64,),
        repeats=1,
        seconds=0.0,
        loader_images=2,
        loader_size=(40, 48),
    )


def plan(settings: Settings, results: Results, libraries: Sequence[str], log: str | None) -> list[Step]:
    """Return all steps, the most important first.

    Args:
        settings: how large they are.
        results: where the best matrix products are found.
        libraries: those out of ``LIBRARIES`` that are installed.
        log: file for the output of the GPU tests; None leaves them out.
    """
    steps = [] if log is None else [Step('GPU tests', partial(run_tests, log), 240)]
    for dtype in benchmark.DTYPES:
        steps.append(Step(peak_key(dtype), partial(measure_peak, settings, dtype), 30))
    found: dict[str, Step] = {}
    for model, case, bound in _cases(settings):
        against = (*_WHOLE_MODELS, *libraries) if case.mode == 'backbone' else _WHOLE_MODELS
        key = case_key(model, case)
        found.setdefault(key, Step(key, partial(measure_case, settings, results, model, case, against), bound))
    cases = list(found.values())
    # what a training needs of its data loader is worth more than the last cases
    loaders = [Step(f'loader {name}', partial(measure_loader, settings, name)) for name in 'BL']
    return [*steps, *cases[:20], *loaders, *cases[20:]]


def _cases(s: Settings) -> list[tuple[str, benchmark.Case, float]]:
    """Return model, case and bound in seconds of each measurement; some are there more than once."""
    out = []

    def add(mode: str, models: str, dtypes: str, batch_sizes: Sequence[int], **more: Any) -> None:
        size, bound, compiled = more.get('size'), more.get('bound', 45.0), more.get('compile', False)
        for batch_size in batch_sizes:
            for dtype in dtypes.split():
                for name in filter(s.configs.__contains__, models):
                    shape = size or (s.crops[name],) * 2
                    out.append((name, benchmark.Case(mode, shape, batch_size, None, dtype, compiled), bound))

    dtypes = ' '.join(benchmark.DTYPES)
    for name in 'BTSL':
        add('forward', name, 'bf16', [s.middle])
        add('train', name, 'bf16', [s.middle])
        add('slide', name, 'fp16', [1], size=s.image)
    add('backbone', 'B', 'bf16', [s.middle, s.few, s.many])
    add('tta', 'B', 'fp16', [1], size=s.tta_image, bound=60.0)
    add('forward', 'B', dtypes, [s.middle])
    add('train', 'B', dtypes, [s.middle])
    add('forward', 'BT', 'bf16', [s.middle], compile=True, bound=120.0)
    add('train', 'B', 'bf16', [s.middle], compile=True, bound=120.0)
    add('forward', 'B', 'bf16', s.batch_sizes)
    add('train', 'B', 'bf16', s.batch_sizes)
    add('slide', 'B', 'fp16', [1], size=s.large_image, bound=60.0)
    add('slide', 'B', dtypes, [1], size=s.image)
    add('backbone', 'TSL', 'bf16', [s.middle])
    add('backbone', 'B', 'bf16', [s.middle], compile=True, bound=180.0)
    add('tta', 'TSL', 'fp16', [1], size=s.tta_image, bound=60.0)
    add('forward', 'TSL', 'bf16', [s.few, s.many])
    add('train', 'TSL', 'bf16', [s.few, s.many])
    add('backbone', 'B', dtypes, [s.middle])
    add('forward', 'TSL', dtypes, [s.middle])
    add('train', 'TSL', dtypes, [s.middle])
    add('forward', 'SL', 'bf16', [s.middle], compile=True, bound=120.0)
    add('forward', 'BTSL', dtypes, [s.few, s.many])
    add('slide', 'TSL', dtypes, [1], size=s.image)
    add('forward', 'TSL', 'bf16', s.batch_sizes)
    add('train', 'TSL', 'bf16', s.batch_sizes)
    return out


def peak_key(dtype: str) -> str:
    """Return the key of the best matrix product of a dtype."""
    return f'matrix product {dtype}'


def case_key(model: str, case: benchmark.Case) -> str:
    """Return the key of a case, which also describes it to people."""
    size = f'{case.size[0]}x{case.size[1]}'
    compiled = ', compiled' if case.compile else ''
    return f'{case.mode} {model}, {size}, batch {case.batch_size}, {case.dtype}{compiled}'


def run_tests(log: str, folder: str | None = None) -> dict[str, Any]:
    """Run the tests that need a GPU.

    Args:
        log: file for their output.
        folder: folder of the tests; default that of the repository.

    Returns:
        ``summary``, the last line, and ``failed``, a line for each failure.
    """
    folder = folder or str(_PACKAGE.parent / 'tests')
    if not os.path.isdir(folder):
        return dict(summary=f'not run: no folder {folder}', failed=[])
    options = ['-m', 'gpu', '-q', '-rfE', '--tb=short', '-W', 'ignore', '--continue-on-collection-errors']
    command = [sys.executable, '-m', 'pytest', *options, '-p', 'no:cacheprovider', '--color=no', folder]
    with open(log, 'w', encoding='utf-8') as file:
        subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, cwd=os.path.dirname(folder), check=False)
    lines = Path(log).read_text(encoding='utf-8', errors='replace').splitlines()
    failed = [line for line in lines if line.startswith(('FAILED ', 'ERROR '))]
    return dict(summary=lines[-1].strip(' =') if lines else 'no output', failed=failed)


def measure_peak(settings: Settings, dtype: str) -> float:
    """Measure the best matrix product in GFLOP/s."""
    return benchmark.matmul_peak(dtype, settings.peak_sizes)


def measure_case(
    settings: Settings, results: Results, model: str, case: benchmark.Case, against: Sequence[str]
) -> dict[str, Any]:
    """Measure a case.

    Args:
        settings: how often to repeat, and the configs.
        results: where the best matrix product of the dtype is found.
        model: name of the model in ``settings``.
        case: what to run.
        against: libraries whose modules run beside this package's.

    Returns:
        ``model``, ``case`` and ``contenders`` with their figures.
    """
    models = copy.deepcopy(_contenders(settings.configs[model], tuple(against), tuple(settings.options.items())))
    peak = results.value(peak_key(case.dtype))
    memory = benchmark.device() == 'cuda'
    benchmark.compare(case, models, settings.repeats, memory, peak, settings.seconds, keep_going=True)
    return dict(model=model, **benchmark.record(case, models))


@cache
def _contenders(config: str, against: tuple[str, ...], options: tuple[Any, ...]) -> list[benchmark.Contender]:
    # cached, since reading a config takes longer than many a case
    return benchmark.contenders(config, against, None, dict(options))


def measure_loader(settings: Settings, model: str) -> dict[str, Any]:
    """Measure the training pipeline of a config on drawn images.

    Returns:
        ``model``, and the milliseconds an image of each transform.
    """
    with tempfile.TemporaryDirectory() as folder:
        make_shapes(folder, num_images=max(settings.loader_images, 6), size=settings.loader_size)
        options = {'train_dataloader.dataset.data_root': folder}
        times = benchmark.loader(settings.configs[model], options, settings.loader_images)
    return dict(model=model, milliseconds=dict(times.transforms))
