"""Tables, files and plots of what was measured."""

import json
from dataclasses import asdict
from typing import Any

from ...tables import format_table
from .cases import Case, Contender
from .measure import machine
from .pipeline import LoaderTimes


def table(case: Case, models: list[Contender]) -> str:
    """Return a table for the screen; speed is relative to the first model."""
    head = f'{case.mode}, {case.size[0]}x{case.size[1]}, batch {case.batch_size}'
    head += f', {case.num_classes} classes' if case.num_classes else ''
    head += f', {case.dtype}' if case.dtype != 'float32' else ''
    head += ', compiled' if case.compile else ''
    agreement = dict(forward='max diff', backbone='max diff', train='loss diff').get(case.mode, 'equal px')
    columns = ['', 'median s', 'images/s', 'speed', 'peak GB', 'over model', 'params M', 'GFLOP', 'of peak', agreement]
    optional = [
        ('equal labels', [number(side.equal_labels, '.2%') for side in models]),
        ('file MB', [number(side.file_mb, '.1f') for side in models]),
    ]
    optional = [(name, values) for name, values in optional if set(values) != {'-'}]
    columns += [name for name, _ in optional]
    rows, base = [columns], models[0].median
    for i, side in enumerate(models):
        if side.median is None:
            rows.append([side.name, side.error or 'not run', *[''] * (len(columns) - 2)])
            continue
        over_model = None if side.peak_gb is None or side.model_gb is None else side.peak_gb - side.model_gb
        rows.append(
            [
                side.name,
                number(side.median, '.3f'),
                number(case.batch_size / side.median, '.2f'),
                '-' if base is None else f'{base / side.median:.2f}x',
                number(side.peak_gb, '.2f'),
                number(over_model, '.2f'),
                number(side.parameters / 1e6, '.1f'),
                number(side.gflops, '.1f'),
                number(side.peak_share, '.0%'),
                number(side.agreement, '.4%' if agreement == 'equal px' else '.2g'),
                *(values[i] for _, values in optional),
            ]
        )
    return f'{head}\n{format_table(rows)}'


def number(value: float | None, style: str) -> str:
    """Return a formatted number, or a dash for None."""
    return '-' if value is None else format(value, style)


def record(case: Case, models: list[Contender]) -> dict[str, Any]:
    """Return a case and its results as JSON takes them."""
    base, rows = models[0].median, []
    for side in models:
        row = {k: v for k, v in asdict(side).items() if k != 'config'}
        speed = None if base is None or side.median is None else base / side.median
        rows.append(row | dict(median=side.median, speed=speed))
    return dict(case=asdict(case), contenders=rows)


def write_json(path: str, records: list[dict[str, Any]], peak: float | None) -> None:
    """Write the machine, the versions and every figure to a file."""
    with open(path, 'w') as file:
        json.dump(dict(machine=machine(), matmul_gflops=peak, records=records), file, indent=1)


def plot(path: str, records: list[dict[str, Any]]) -> None:
    """Plot time and memory against the image size, with a line for each model and each option that varies."""
    from ...visualization.plots import new_figure

    lines: dict[str, list[tuple[float, float, float | None]]] = {}
    varied = [
        key
        for key in records[0]['case']
        if key not in ('size', 'images') and len({r['case'][key] for r in records}) > 1
    ]
    for r in records:
        megapixels = r['case']['size'][0] * r['case']['size'][1] / 1e6
        for side in r['contenders']:
            name = ', '.join([side['name'], *(f'{key} {r["case"][key]}' for key in varied)])
            if side['median'] is not None:
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


def loader_table(config: str, times: LoaderTimes) -> str:
    """Return the times of the transforms of a training pipeline as text."""
    total = sum(ms for _, ms in times.transforms)
    lines = [f'{config}: {1e3 / total:.1f} images/s for one worker']
    for i, (name, ms) in enumerate(times.transforms):
        beside = ''
        if times.beside:
            other, other_ms = times.beside[i]
            beside = f'   mmseg {other_ms:8.3f} ms' + (f' ({other})' if other != name else '')
        lines.append(f'{name:28}{ms:9.3f} ms {ms / total:6.0%}{beside}')
    if times.beside:
        lines.append(f'loaders over those of mmseg: {times.cost_of_loaders:+.1%} of the time of an image')
    return '\n'.join(lines)
