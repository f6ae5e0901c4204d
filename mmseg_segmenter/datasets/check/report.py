"""The result of a dataset check as text, JSON and plot."""

import json
import textwrap
from typing import Any

from ...files import replace_file, write_text
from .check import Problem, Report

_SHOWN = 3  # files named on the screen
_WIDTH = 120


def as_text(report: Report) -> str:
    """For the screen: the splits, the classes, then the problems, the worst last, where they are seen."""
    lines = [_split_line(name, report) for name in report.tallies]
    if any(tally.label_pixels for tally in report.tallies.values()):
        lines += ['', _class_table(report)]
    for severity in ('WARNING', 'ERROR'):
        for problem in report.problems:
            if problem.severity == severity:
                lines += ['', *_problem_lines(problem)]
    images = sum(tally.images for tally in report.tallies.values())
    warnings = len(report.problems) - len(report.errors)
    lines += [
        '',
        f'{_plural(len(report.errors), "error")}, {_plural(warnings, "warning")}; {_plural(images, "image")} in '
        f'{report.seconds:.1f} s ({images / max(report.seconds, 1e-9):.0f}/s, {_plural(report.workers, "process")})',
    ]
    return '\n'.join(lines)


def _plural(count: int, noun: str) -> str:
    return f'{count} {noun}' + ('' if count == 1 else 'es' if noun.endswith('s') else 's')


def _split_line(name: str, report: Report) -> str:
    tally = report.tallies[name]
    spans = [str(a) if a == b else f'{a} to {b}' for a, b in filter(None, (tally.heights, tally.widths))]
    size = f', {" x ".join(spans)} pixels (height x width)' if spans else ''
    images = ', '.join(f'{mode} {count}' for mode, count in tally.image_modes.most_common())
    masks = ', '.join(f'{mode} {count}' for mode, count in tally.mask_modes.most_common()) or 'none'
    return f'{name}: {tally.images} images ({images}){size}; masks: {masks}'


def _problem_lines(problem: Problem) -> list[str]:
    count = f': {problem.count}' if problem.count else ''
    where = f'{problem.split}: ' if problem.split else ''
    lines = textwrap.wrap(f'{problem.severity} {where}{problem.message}{count}', _WIDTH, break_long_words=False)
    lines += [f'    {name}' for name in problem.files[:_SHOWN]]
    if problem.count > _SHOWN:
        lines.append(f'    and {problem.count - _SHOWN} more')
    if problem.hint:
        lines += textwrap.wrap(problem.hint, _WIDTH, initial_indent='  -> ', subsequent_indent='     ')
    return lines


def _class_table(report: Report) -> str:
    head = ['class', *(column for name in report.tallies for column in (f'{name} pixels', f'{name} images'))]
    names = [*enumerate(report.classes), (report.ignore_index, 'ignored')]
    rows = [head]
    for label, name in names:
        row = [f'{label} {name}' if name != 'ignored' else 'ignored']
        for tally in report.tallies.values():
            share = _share(tally.label_pixels, label, report.ignore_index)
            row += ['-' if share is None else f'{share:.3%}', str(tally.label_images[label])]
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return '\n'.join(
        '  '.join([row[0].ljust(widths[0])] + [cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)])
        for row in rows
    )


def _share(pixels: Any, label: int, ignore_index: int) -> float | None:
    """Of a class in the labelled pixels; of the ignored ones in all."""
    total = sum(pixels.values()) - (0 if label == ignore_index else pixels[ignore_index])
    return pixels[label] / total if total else None


def as_dict(report: Report) -> dict[str, Any]:
    """Everything, for JSON: numbers of pixels and images by class, problems with up to 1000 files each."""
    splits = {}
    for name, tally in report.tallies.items():
        splits[name] = dict(
            images=tally.images,
            heights=tally.heights,
            widths=tally.widths,
            image_modes=dict(tally.image_modes),
            mask_modes=dict(tally.mask_modes),
            values_in_masks={str(v): n for v, n in sorted(tally.stored.items())},
            label_pixels={str(v): n for v, n in sorted(tally.label_pixels.items())},
            label_images={str(v): n for v, n in sorted(tally.label_images.items())},
        )
    return dict(
        config=report.config,
        classes=report.classes,
        ignore_index=report.ignore_index,
        splits=splits,
        problems=[vars(problem) for problem in report.problems],
        seconds=report.seconds,
        workers=report.workers,
    )


def write_json(report: Report, path: str) -> None:
    """:func:`as_dict` in a file; an existing one is replaced.

    Raises:
        OSError: cannot write there.
    """
    text = json.dumps(as_dict(report), indent=1) + '\n'
    replace_file(path, lambda part: write_text(part, text))


def plot(report: Report, path: str) -> None:
    """Share of the labelled pixels by class as a PNG, one bar per split; an existing file is replaced.

    The axis is logarithmic: a class of 0.01 % and one of 50 % are both to be
    seen. Above 60 classes dots over the label numbers take the place of
    bars with names.

    Raises:
        OSError: cannot write there.
    """
    from ...visualization.plots import new_figure

    K = len(report.classes)
    shares = {
        name: [100 * (_share(tally.label_pixels, k, report.ignore_index) or 0) for k in range(K)]
        for name, tally in report.tallies.items()
    }
    seen = [share for values in shares.values() for share in values if share]
    low = min([*seen, 1.0]) / 2
    bars = K <= 60
    figure = new_figure(8, 1.5 + 0.3 * K) if bars else new_figure(10, 4)
    axis = figure.subplots()
    for s, (name, values) in enumerate(shares.items()):
        if bars:
            height = 0.8 / len(shares)
            axis.barh([k + (s - (len(shares) - 1) / 2) * height for k in range(K)], values, height, label=name)
        else:
            axis.plot(range(K), [value or float('nan') for value in values], '.', markersize=3, label=name)
    label = 'share of the labelled pixels, %'
    if bars:
        axis.set(xscale='log', xlim=(low, 100), xlabel=label, ylim=(K - 0.5, -0.5))
        axis.set_yticks(range(K), [f'{k} {name}' for k, name in enumerate(report.classes)])
    else:
        axis.set(yscale='log', ylim=(low, 100), ylabel=label, xlabel='label', xlim=(-1, K))
    (axis.xaxis if bars else axis.yaxis).set_major_formatter('{x:g}')
    axis.grid(axis='x' if bars else 'y', alpha=0.3)
    figure.legend(*axis.get_legend_handles_labels(), loc='outside upper right', ncols=len(shares))
    replace_file(path, lambda part: figure.savefig(part, dpi=110, format='png'))
