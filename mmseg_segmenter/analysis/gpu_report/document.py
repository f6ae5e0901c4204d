"""The page and the plots about what was measured."""

import os
from collections.abc import Sequence
from typing import Any

from ...files import write_atomically, write_text
from ...tables import format_table
from ..benchmark import DTYPES, number
from .runner import Results, Step
from .steps import peak_key

NAME = 'performance_gpu'
_KINDS = ('mmseg', 'timm', 'transformers', 'ours')
_TITLES = dict(
    forward=('Forward pass', 'Backbone and head, without upsampling.'),
    backbone=('Backbone', 'The encoder alone, beside the modules of other libraries.'),
    train=(
        'Training step',
        'Forward pass, loss at full resolution, backward pass and SGD, from uint8 images in memory.',
    ),
    slide=('Sliding windows', 'From a uint8 image in memory to its labels; windows overlap by 32 pixels.'),
    tta=('Test-time augmentation', 'Six scales, each also flipped, from uint8 images in memory to labels.'),
)
_COMPILED = ('Compiled', '`torch.compile` of the backbone and the head. The first run compiles, and is not timed.')
Record = dict[str, Any]


def write_document(folder: str, results: Results, steps: Sequence[Step], smoke: bool) -> str:
    """Write the page and its plots, replacing earlier ones.

    Args:
        folder: where to write; it is made.
        results: what was measured.
        steps: everything that was to be measured, in order.
        smoke: say that the figures are of a rehearsal.

    Returns:
        Path of the page.

    Raises:
        OSError: the files cannot be written; nothing is left behind.
    """
    records = [results.value(step.key) for step in steps]
    records = [record for record in records if isinstance(record, dict) and 'case' in record]
    plots = {name: lines for name, lines in _plots(records).items() if lines}
    text = _page(results, steps, records, list(plots), smoke)
    writers: dict[str, Any] = {
        f'{NAME}_{name}.png': lambda path, name=name: _draw(path, name, plots[name]) for name in plots
    }
    writers[f'{NAME}.md'] = lambda path: write_text(path, text)
    write_atomically(folder, writers, force=True)
    return os.path.join(folder, f'{NAME}.md')


def _page(results: Results, steps: Sequence[Step], records: list[Record], plots: list[str], smoke: bool) -> str:
    machine = results.content['machine']
    versions = ', '.join(f'{key} {machine[key]}' for key in ('torch', 'mmsegmentation', 'mmseg_segmenter', 'python'))
    parts = [
        '# Performance on a GPU',
        'A rehearsal with tiny models: the figures mean nothing.' if smoke else '',
        f'Device: {machine["device"]}. Versions: {versions}. `tools/analysis_tools/gpu_report.sh` writes this page.',
        'The models of a row run in one process, with the same weights and data, taking turns after a warm-up. Rates '
        'are images per second from the median time. *Speed* is this package relative to the library named. *Of peak* '
        "is the rate of the model's matrix products relative to the best matrix product of the same dtype. *Memory* is "
        'the peak of allocated GPU memory in GB, of one model alone. *Agreement* compares this package with the first '
        'library of the row: the largest difference of the outputs, the difference of the losses, or the share of '
        'equal labels. Models are Segmenter with the mask decoder, ViT-T, S and B for 512x512 and ViT-L for 640x640, '
        '150 classes, random weights. fp16 and bf16 run under autocast with float32 weights; float32 has TF32 off.',
        *results.content['left_out'],
        *_tests(results),
        *_peaks(results),
    ]
    for mode, (title, explanation) in _TITLES.items():
        chosen = [record for record in records if record['case']['mode'] == mode and not record['case']['compile']]
        parts += _section(title, explanation, chosen)
    parts += _section(*_COMPILED, [record for record in records if record['case']['compile']])
    parts += _loaders(results, steps)
    if plots:
        parts += ['## Plots', *(f'![{_PLOTS[name][0]}]({NAME}_{name}.png)' for name in plots)]
    parts += _gaps(results, steps, records)
    return '\n\n'.join(part for part in parts if part) + '\n'


def _tests(results: Results) -> list[str]:
    found = results.value('GPU tests')
    if found is None:
        return []
    failed = '\n'.join(f'- `{line}`' for line in found['failed'])
    return ['## Tests', f'`pytest -m gpu`: {found["summary"]}', failed]


def _peaks(results: Results) -> list[str]:
    rates = {dtype: results.value(peak_key(dtype)) for dtype in DTYPES}
    rows = [[dtype, f'{rate / 1e3:.1f}'] for dtype, rate in rates.items() if rate is not None]
    return ['## Best matrix product', format_table([['dtype', 'TFLOP/s'], *rows], markdown=True)] if rows else []


def _section(title: str, explanation: str, records: list[Record]) -> list[str]:
    if not records:
        return []
    found = {side['kind'] for record in records for side in record['contenders']}
    kinds = [kind for kind in _KINDS if kind in found]
    others = [kind for kind in kinds if kind != 'ours']
    with_peak = [kind for kind in ('mmseg', 'ours') if _has(records, kind, 'peak_share')]
    with_memory = [kind for kind in kinds if _has(records, kind, 'peak_gb')]
    compiled = any(record['case']['compile'] for record in records)
    header = [*(['mode'] if compiled else []), 'model', 'size', 'batch', 'dtype']
    header += [_label(kind, 'images/s') for kind in kinds] + [f'speed ({kind})' for kind in others]
    header += [_label(kind, 'of peak') for kind in with_peak]
    header += [_label(kind, 'GB') for kind in with_memory]
    header += ['first run, s'] if compiled else []
    rows = [header]
    for record in sorted(records, key=_order):
        case, sides = record['case'], {side['kind']: side for side in record['contenders']}
        ours = sides['ours']
        row = [case['mode']] if compiled else []
        row += [record['model'], f'{case["size"][0]}x{case["size"][1]}', case['batch_size'], case['dtype']]
        row += [_rate(sides.get(kind), case['batch_size']) for kind in kinds]
        row += [_speed(sides.get(kind), ours) for kind in others]
        row += [_figure(sides.get(kind), 'peak_share', '.0%') for kind in with_peak]
        row += [_figure(sides.get(kind), 'peak_gb', '.2f') for kind in with_memory]
        row += [_figure(ours, 'first_seconds', '.0f')] if compiled else []
        rows.append([*row, _agreement(case, ours)])
    header.append('agreement')
    return [f'## {title}', explanation, format_table(rows, markdown=True)]


def _has(records: list[Record], kind: str, key: str) -> bool:
    return any(side['kind'] == kind and side[key] is not None for record in records for side in record['contenders'])


def _label(kind: str, quantity: str) -> str:
    return f'{"here" if kind == "ours" else kind}, {quantity}'


def _order(record: Record) -> tuple[Any, ...]:
    case = record['case']
    return (
        case['mode'],
        'TSBL'.find(record['model']),
        case['size'],
        list(DTYPES).index(case['dtype']),
        case['batch_size'],
    )


def _rate(side: Record | None, batch_size: int) -> str:
    if side is None:
        return '-'
    if side['median'] is None:
        return 'out of memory' if side['error'] == 'out of memory' else 'failed'
    return f'{batch_size / side["median"]:.1f}'


def _speed(side: Record | None, ours: Record) -> str:
    if side is None or side['median'] is None or ours['median'] is None:
        return '-'
    return f'{side["median"] / ours["median"]:.2f}x'


def _figure(side: Record | None, key: str, style: str) -> str:
    return number(None if side is None else side[key], style)


def _agreement(case: Record, ours: Record) -> str:
    return number(ours['agreement'], '.4%' if case['mode'] in ('slide', 'tta') else '.1e')


def _loaders(results: Results, steps: Sequence[Step]) -> list[str]:
    rows: list[list[Any]] = [['config', 'images/s of one worker', 'slowest transforms']]
    for step in steps:
        found = results.value(step.key)
        if isinstance(found, dict) and 'milliseconds' in found:
            times = sorted(found['milliseconds'].items(), key=lambda item: -item[1])
            slowest = ', '.join(f'{name} {ms:.1f} ms' for name, ms in times[:3])
            rows.append([found['model'], f'{1e3 / sum(ms for _, ms in times):.1f}', slowest])
    if len(rows) == 1:
        return []
    return ['## Loader', 'The training pipeline on drawn images; T and S have that of B.', format_table(rows, True)]


def _gaps(results: Results, steps: Sequence[Step], records: list[Record]) -> list[str]:
    """List what failed and what was not measured."""
    entries = results.content['steps']
    failures = [f'{step.key}: {entries[step.key]["error"]}' for step in steps if 'error' in entries.get(step.key, {})]
    for record in records:
        for side in record['contenders']:
            if side['error'] not in (None, 'out of memory'):
                failures.append(f'{_describe(record)}, {_label(side["kind"], side["error"])}')
    missing = [step.key for step in steps if not results.finished(step.key)]
    parts = ['## Failed', '\n'.join(f'- {line}' for line in failures)] if failures else []
    if missing:
        parts += [
            '## Not measured',
            'The time was up. Another call measures:',
            '\n'.join(f'- {key}' for key in missing),
        ]
    return parts


def _describe(record: Record) -> str:
    case = record['case']
    return f'{case["mode"]} {record["model"]}, {case["dtype"]}, batch {case["batch_size"]}'


Lines = dict[str, dict[str, list[tuple[float, float]]]]
# by name: title, mode, label of the y axis
_PLOTS = dict(
    throughput=('Forward pass under bf16 autocast', 'forward', 'images/s'),
    memory=('Peak memory of a training step under bf16 autocast', 'train', 'GB'),
)


def _plots(records: list[Record]) -> dict[str, Lines]:
    """Return for each plot its panels by model, their lines by library, and the points (batch size, value)."""
    plots: dict[str, Lines] = {name: {} for name in _PLOTS}
    for record in records:
        case = record['case']
        for name, (_, mode, _) in _PLOTS.items():
            if case['mode'] != mode or case['dtype'] != 'bf16' or case['compile']:
                continue
            for side in record['contenders']:
                rate = None if side['median'] is None else case['batch_size'] / side['median']
                value = rate if name == 'throughput' else side['peak_gb']
                if value is not None:
                    lines = plots[name].setdefault(f'ViT-{record["model"]}', {})
                    lines.setdefault(_label(side['kind'], '')[:-2], []).append((case['batch_size'], value))
    return plots


def _draw(path: str, name: str, panels: Lines) -> None:
    from ...visualization.plots import new_figure

    title, _, ylabel = _PLOTS[name]
    figure = new_figure(3.2 * len(panels), 3.6)
    figure.suptitle(title, fontsize=11)
    for axis, (model, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for label, points in sorted(lines.items()):
            axis.plot(*zip(*sorted(points), strict=True), 'o-', label=label, markersize=4)
        axis.set_xscale('log', base=2)
        axis.set(title=model, xlabel='batch size', ylabel=ylabel, ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
