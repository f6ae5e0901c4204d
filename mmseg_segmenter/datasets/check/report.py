"""Show the result of a dataset check as text, JSON and a plot."""

import json
import textwrap
from collections import Counter

from ...files import replace_file, write_text
from ...tables import format_table
from .results import Problem, Report

_MAX_FILES = 3  # listed per problem
_MAX_BARS = 60  # classes; a plot of more has dots
_WIDTH = 120  # characters


def as_text(report: Report) -> str:
    """Return the splits, the classes and the problems as text. Errors come last, where they are seen."""
    lines = [_split_line(split, report) for split in report.splits]
    if any(statistics.label_pixels for statistics in report.splits.values()):
        lines += ['', format_table(_class_table(report))]
    for severity in ('WARNING', 'ERROR'):
        for problem in report.problems:
            if problem.severity == severity:
                lines += ['', *_problem_lines(problem)]
    images = sum(statistics.images for statistics in report.splits.values())
    warnings = len(report.problems) - len(report.errors)
    lines += [
        '',
        f'{_count(len(report.errors), "error")}, {_count(warnings, "warning")}; {_count(images, "image")} in '
        f'{report.seconds:.1f} s ({images / max(report.seconds, 1e-9):.0f}/s, {_count(report.workers, "process")})',
    ]
    return '\n'.join(lines)


def _count(count: int, noun: str) -> str:
    return f'{count} {noun}' + ('' if count == 1 else 'es' if noun.endswith('s') else 's')


def _split_line(split: str, report: Report) -> str:
    statistics = report.splits[split]
    ranges = [str(a) if a == b else f'{a} to {b}' for a, b in filter(None, (statistics.heights, statistics.widths))]
    size = f', {" x ".join(ranges)} pixels (height x width)' if ranges else ''
    images, masks = (
        ', '.join(f'{mode} {count}' for mode, count in modes.most_common()) or 'none'
        for modes in (statistics.image_modes, statistics.mask_modes)
    )
    return f'{split}: {_count(statistics.images, "image")} ({images}){size}; masks: {masks}'


def _problem_lines(problem: Problem) -> list[str]:
    count = f': {problem.count}' if problem.count else ''
    split = f'{problem.split}: ' if problem.split else ''
    lines = textwrap.wrap(f'{problem.severity} {split}{problem.message}{count}', _WIDTH, break_long_words=False)
    lines += [f'    {name}' for name in problem.files[:_MAX_FILES]]
    if problem.count > _MAX_FILES:
        lines.append(f'    and {problem.count - _MAX_FILES} more')
    if problem.hint:
        lines += textwrap.wrap(problem.hint, _WIDTH, initial_indent='  -> ', subsequent_indent='     ')
    return lines


def _class_table(report: Report) -> list[list[str]]:
    rows = [['class', *(column for split in report.splits for column in (f'{split} pixels', f'{split} images'))]]
    names = [(k, f'{k} {name}') for k, name in enumerate(report.classes)]
    for label, name in [*names, (report.ignore_index, 'ignored')]:
        row = [name]
        for statistics in report.splits.values():
            share = _share(statistics.label_pixels, label, report.ignore_index)
            row += ['-' if share is None else f'{share:.3%}', str(statistics.label_images[label])]
        rows.append(row)
    return rows


def _share(pixels: Counter[int], label: int, ignore_index: int) -> float | None:
    """Return the share of a class in the labelled pixels, or of the ignored pixels in all of them."""
    total = sum(pixels.values()) - (0 if label == ignore_index else pixels[ignore_index])
    return pixels[label] / total if total else None


def write_json(report: Report, path: str) -> None:
    """Write the whole report to a file, with up to 1000 files per problem. An existing file is replaced.

    Raises:
        OSError: the file cannot be written.
    """
    left_out = ('file_problems', 'max_value', 'digests')
    splits = {
        split: {
            name: dict(sorted(value.items())) if isinstance(value, Counter) else value
            for name, value in vars(statistics).items()
            if name not in left_out
        }
        for split, statistics in report.splits.items()
    }
    content = {**vars(report), 'splits': splits, 'problems': [vars(problem) for problem in report.problems]}
    replace_file(path, lambda part: write_text(part, json.dumps(content, indent=1) + '\n'))


def plot(report: Report, path: str) -> None:
    """Write the share of each class in the labelled pixels as a PNG. An existing file is replaced.

    The axis is logarithmic, so that classes of 0.01 % and of 50 % are both
    visible. Up to 60 classes have a named bar per split; more have dots above
    their labels.

    Raises:
        OSError: the file cannot be written.
    """
    from ...visualization.plots import new_figure  # imports matplotlib

    K, splits = len(report.classes), len(report.splits)
    shares = {
        split: [100 * (_share(statistics.label_pixels, k, report.ignore_index) or float('nan')) for k in range(K)]
        for split, statistics in report.splits.items()
    }
    lowest = min([share for values in shares.values() for share in values if share > 0] + [1.0]) / 2
    label = 'share of the labelled pixels, %'
    if K <= _MAX_BARS:
        figure = new_figure(8, 1.5 + 0.3 * K)
        axis = figure.subplots()
        height = 0.8 / splits
        for s, (split, values) in enumerate(shares.items()):
            axis.barh([k + (s - (splits - 1) / 2) * height for k in range(K)], values, height, label=split)
        axis.set(xscale='log', xlim=(lowest, 100), xlabel=label, ylim=(K - 0.5, -0.5))
        axis.set_yticks(range(K), [f'{k} {name}' for k, name in enumerate(report.classes)])
        axis.xaxis.set_major_formatter('{x:g}')
        axis.grid(axis='x', alpha=0.3)
    else:
        figure = new_figure(10, 4)
        axis = figure.subplots()
        for split, values in shares.items():
            axis.plot(range(K), values, '.', markersize=3, label=split)
        axis.set(yscale='log', ylim=(lowest, 100), ylabel=label, xlabel='label', xlim=(-1, K))
        axis.yaxis.set_major_formatter('{x:g}')
        axis.grid(axis='y', alpha=0.3)
    figure.legend(*axis.get_legend_handles_labels(), loc='outside upper right', ncols=splits)
    replace_file(path, lambda part: figure.savefig(part, dpi=110, format='png'))
