"""Curves from the scalars that mmengine's runner writes."""

import glob
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import MissingFileError, UserError
from ..files import write_atomically, write_text
from ..tables import to_csv
from ..visualization import plots

DEFAULT_KEYS = ('loss', 'lr', 'mIoU')
_NOT_SMOOTHED = ('lr', 'base_lr', 'momentum', 'memory')
_COUNTERS = ('iter', 'step', 'epoch')


@dataclass
class TrainingLog:
    """What was logged in one training, resumed ones included.

    Attributes:
        label: for the legend.
        train: values by iteration (counted from 1) and key.
        val: the same, of validations.
    """

    label: str
    train: dict[int, dict[str, float]] = field(default_factory=dict)
    val: dict[int, dict[str, float]] = field(default_factory=dict)

    def keys(self) -> set[str]:
        return {key for part in (self.train, self.val) for values in part.values() for key in values}

    def has(self, key: str) -> bool:
        return key in self.keys()

    def validated(self, key: str) -> bool:
        """Is it logged in validations?"""
        return any(key in values for values in self.val.values())

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(N,) iterations and (N,) values of a key; validations if they have it, else training."""
        part = self.val if self.validated(key) else self.train
        points = [(step, values[key]) for step, values in sorted(part.items()) if key in values]
        return np.array([p[0] for p in points], np.int64), np.array([p[1] for p in points], np.float64)


def read_run(path: str, label: str) -> TrainingLog:
    """Read a work dir or one file.

    A resumed training has a folder for each start. They are joined in order;
    what a start logged at and after the first iteration of the next one was
    lost with the checkpoint that the next one resumed from, and is left out.

    Args:
        path: work dir, one of its timestamp folders, or a file such as
            ``scalars.json``.
        label: for the legend.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a line before the last is damaged, or nothing was logged;
            names file and line.
    """
    run = TrainingLog(label)
    for file in _files(path):
        train, val = _read_file(file)
        if not (train or val):
            continue  # stopped before the first line was due
        first = min([*train, *val])
        for part, new in ((run.train, train), (run.val, val)):
            # a validation at the last iteration before `first` was on the way there
            for step in [step for step in part if step >= first]:
                del part[step]
            part.update(new)
    if not (run.train or run.val):
        raise UserError(f'{path}: no training or validation was logged yet')
    return run


def _files(path: str) -> list[str]:
    if os.path.isfile(path):
        return [path]
    if not os.path.isdir(path):
        raise MissingFileError(f'{path} not found (working directory: {os.getcwd()})')
    for pattern in ('*/vis_data/scalars.json', 'vis_data/scalars.json', 'scalars.json'):
        # folders are named by the time of the start, so that names are in order
        if files := sorted(glob.glob(os.path.join(glob.escape(path), pattern))):
            return files
    raise MissingFileError(f'{path}: no */vis_data/scalars.json in it; expected the work dir of a training')


def _read_file(path: str) -> tuple[dict[int, dict[str, float]], dict[int, dict[str, float]]]:
    train: dict[int, dict[str, float]] = {}
    val: dict[int, dict[str, float]] = {}
    last = 0
    for record in _records(path):
        values = {k: float(v) for k, v in record.items() if k not in _COUNTERS and isinstance(v, int | float)}
        step = record.get('step')
        step = step if isinstance(step, int) else 0
        if 'iter' in record or 'lr' in record:
            last = step
            train[step] = values
        else:
            # Logged by epoch (LoggerHook's log_metric_by_epoch, mmengine's default), `step` counts epochs; the
            # validation came after the last training line.
            step = max(step, last)
            val[step] = {k: v for k, v in values.items() if k not in ('time', 'data_time')}
    return train, val


def _records(path: str) -> Iterable[dict[str, object]]:
    with open(path, encoding='utf-8', errors='replace') as file:
        lines = [(number, line) for number, line in enumerate(file, 1) if line.strip()]
    for number, line in lines:
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise UserError(f'expected an object, found {type(record).__name__}')
        except ValueError as error:
            if number == lines[-1][0]:
                return  # the run was killed while it wrote
            raise UserError(f'{path}, line {number}: not a line of scalars ({error})') from None
        yield record


def smooth(values: np.ndarray, weight: float) -> np.ndarray:
    """Mean over the neighbours on both sides, weighted ``weight ** distance``.

    An exponential moving average as TensorBoard's looks back only and so lags
    behind a falling loss.

    Args:
        values: (N,); NaN and infinity do not count and leave a gap.
        weight: of the next neighbour, in [0, 1).
    """
    finite = np.isfinite(values)
    known, counts = np.where(finite, values, 0.0), finite.astype(np.float64)
    both = [_decayed(one, weight) + _decayed(one[::-1], weight)[::-1] - one for one in (known, counts)]
    return np.where(finite, both[0] / np.maximum(both[1], 1e-12), np.nan)


def _decayed(values: np.ndarray, weight: float) -> np.ndarray:
    """Sums over a value and those before it, weighted ``weight ** distance``."""
    return np.array(list(itertools.accumulate(values, lambda total, value: weight * total + value)))


def run_names(paths: Sequence[str]) -> list[str]:
    """A name for each run: its folder, with as much of the path as tells them apart.

    Args:
        paths: as :func:`read_run`.
    """
    parts = []
    for path in paths:
        path = os.path.abspath(path)
        path = os.path.dirname(path) if os.path.isfile(path) else path
        parts.append([part for part in path.split(os.sep) if part != 'vis_data'])
    for depth in range(1, max(map(len, parts)) + 1):
        names = [os.sep.join(one[-depth:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def analyze(
    paths: Sequence[str],
    out: str,
    keys: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    weight: float = 0.6,
) -> str:
    """Draw curves of runs into ``out.png`` and write the values to ``out.csv``, both or none.

    Args:
        paths: as :func:`read_run`.
        out: with or without ``.png``.
        keys: what to draw; default loss, lr and mIoU as far as logged.
        names: of the runs.
        weight: of :func:`smooth`, for what is logged in training but the
            learning rate; 0 draws no smoothed line.

    Returns:
        A line for each run: iterations, last loss, last and best mIoU (of the
        validation keys drawn).

    Raises:
        FileNotFoundError: a run does not exist.
        ValueError: as :func:`read_run`; no run has a key; an argument is out
            of range.
        OSError: cannot write there.
    """
    if not 0 <= weight < 1:
        raise UserError(f'weight={weight}; expected 0 <= weight < 1')
    if names is not None and (len(names) != len(paths) or len(set(names)) != len(names)):
        raise UserError(f'{len(paths)} runs, labels {", ".join(names)}; expected one for each, all different')
    if len(set(map(os.path.abspath, paths))) != len(paths):
        raise UserError(f'the same run twice in {" ".join(paths)}')
    out = out.removesuffix('.png')  # that the other tools want
    if os.path.isdir(out) or not os.path.basename(out):
        raise UserError(f'out={out} is a folder; expected the beginning of a file name')
    runs = [read_run(path, name) for path, name in zip(paths, names or run_names(paths), strict=True)]
    found = set().union(*(run.keys() for run in runs))
    if keys is None:
        keys = [key for key in DEFAULT_KEYS if key in found]
        if not keys:
            raise UserError(f'none of {", ".join(DEFAULT_KEYS)} was logged; found {", ".join(sorted(found))}')
    if unknown := [key for key in keys if key not in found]:
        raise UserError(f'key {", ".join(unknown)} was not logged; found {", ".join(sorted(found))}')
    panels = {
        key: [_curve(run, key, number, weight) for number, run in enumerate(runs) if run.has(key)] for key in keys
    }
    folder, stem = os.path.split(out)
    writers = {
        f'{stem}.png': lambda path: plots.curves(path, panels),
        f'{stem}.csv': lambda path: write_text(path, to_csv(_table(runs, keys))),
    }
    write_atomically(folder, writers, force=True)
    return '\n'.join(_summary(run, keys) for run in runs)


def _curve(run: TrainingLog, key: str, number: int, weight: float) -> plots.Curve:
    iterations, values = run.series(key)
    validation = run.validated(key)
    smoothed = None if validation or not weight or key in _NOT_SMOOTHED else smooth(values, weight)
    return plots.Curve(run.label, iterations, values, smoothed, validation, number)


def _table(runs: Sequence[TrainingLog], keys: Sequence[str]) -> list[list[object]]:
    """A line for each run and iteration."""
    rows: list[list[object]] = [['run', 'iteration', *keys]]
    for run in runs:
        series = [dict(zip(*map(np.ndarray.tolist, run.series(key)), strict=True)) for key in keys]
        for step in sorted(set().union(*series)):
            rows.append([run.label, step, *(one.get(step, '') for one in series)])
    return rows


def _summary(run: TrainingLog, keys: Sequence[str]) -> str:
    parts = [f'{run.label}: {max([*run.train, *run.val])} iterations']
    for key in keys:
        steps, values = run.series(key)
        if not len(values):
            parts.append(f'no {key}')
        elif run.validated(key):
            best = int(np.nanargmax(values)) if np.isfinite(values).any() else -1
            parts.append(f'{key} {values[-1]:.2f} (highest {values[best]:.2f} at {steps[best]})')
        else:
            parts.append(f'{key} {values[-1]:.4g}')
    return ', '.join(parts)
