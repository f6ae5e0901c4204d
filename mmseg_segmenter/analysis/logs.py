"""Plot training curves from the scalars that mmengine's runner writes."""

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
    """Values logged in one training, including its resumptions.

    Attributes:
        label: name of the run, for the legend.
        train: values of the training by iteration (from 1) and key.
        val: values of the validations, likewise.
    """

    label: str
    train: dict[int, dict[str, float]] = field(default_factory=dict)
    val: dict[int, dict[str, float]] = field(default_factory=dict)

    def logged_keys(self) -> set[str]:
        """Return the keys of all values."""
        return {key for part in (self.train, self.val) for values in part.values() for key in values}

    def validated(self, key: str) -> bool:
        """Return whether a key is logged in validations."""
        return any(key in values for values in self.val.values())

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Return (N,) iterations and (N,) values of a key, from validations if they have it, else from training."""
        part = self.val if self.validated(key) else self.train
        points = [(step, values[key]) for step, values in sorted(part.items()) if key in values]
        return np.array([p[0] for p in points], np.int64), np.array([p[1] for p in points], np.float64)


def read_run(path: str, label: str) -> TrainingLog:
    """Read the log of a training from a work dir or a file.

    A resumed training has one folder per start. They are joined in order.
    Values that a start logged after the checkpoint from which the next one
    resumed are left out, because the next start computed them again.

    Args:
        path: work dir, one of its timestamp folders, or a file such as
            ``scalars.json``.
        label: name of the run, for the legend.

    Raises:
        FileNotFoundError: there is no log.
        UserError: nothing was logged, or a line before the last is damaged;
            names the file and the line.
    """
    run = TrainingLog(label)
    for file in _files(path):
        train, val = _read_file(file)
        if not (train or val):
            continue  # this start ended before it logged anything
        first = min([*train, *val])
        for part, new in ((run.train, train), (run.val, val)):
            # Validations before `first` are kept: the next start did not repeat them.
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
        # Folders are named after the time of the start, so sorting by name is sorting by time.
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
            # With log_metric_by_epoch of LoggerHook (mmengine's default), `step` of a validation is the epoch. The
            # validation took place after the last training line.
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
        except (ValueError, RecursionError) as error:
            if number == lines[-1][0]:
                return  # the run was killed while it wrote the line
            raise UserError(f'{path}, line {number}: expected scalars as JSON ({error})') from None
        yield record


def smooth(values: np.ndarray, weight: float) -> np.ndarray:
    """Smooth values with weights ``weight ** distance`` on both sides.

    The exponential moving average of TensorBoard uses past values only, and
    therefore lags behind a falling loss.

    Args:
        values: (N,); NaN and infinity do not count and leave a gap.
        weight: weight of the direct neighbours, in [0, 1).

    Returns:
        (N,) weighted means.
    """
    finite = np.isfinite(values)
    known, counts = np.where(finite, values, 0.0), finite.astype(np.float64)
    both = [_decayed(one, weight) + _decayed(one[::-1], weight)[::-1] - one for one in (known, counts)]
    return np.where(finite, both[0] / np.maximum(both[1], 1e-12), np.nan)


def _decayed(values: np.ndarray, weight: float) -> np.ndarray:
    """Return the sum of each value and those before it, weighted with ``weight ** distance``."""
    return np.array(list(itertools.accumulate(values, lambda total, value: weight * total + value)))


def run_names(paths: Sequence[str]) -> list[str]:
    """Return a name for each run: its folder, with as much of the path as makes the names differ.

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
    """Plot curves of runs to ``out.png`` and write their values to ``out.csv``, both or none.

    Args:
        paths: work dirs or files, as in :func:`read_run`.
        out: name of the files, with or without ``.png``.
        keys: keys to plot, by default those of loss, lr and mIoU that were
            logged.
        names: names of the runs, by default :func:`run_names`.
        weight: weight of :func:`smooth` for training values other than the
            learning rate; 0 draws no smoothed line.

    Returns:
        A line per run: its iterations, and the last value of each key, with
        the highest one for validations.

    Raises:
        FileNotFoundError: a run does not exist.
        UserError: a log is damaged or empty, no run has a key, or an argument
            is out of range.
        OSError: a file cannot be written.
    """
    if not 0 <= weight < 1:
        raise UserError(f'weight={weight}; expected 0 <= weight < 1')
    if names is not None and (len(names) != len(paths) or len(set(names)) != len(names)):
        raise UserError(f'{len(paths)} runs, labels {", ".join(names)}; expected one label per run, all different')
    if len(set(map(os.path.abspath, paths))) != len(paths):
        raise UserError(f'runs {" ".join(paths)}; expected different ones')
    out = out.removesuffix('.png')
    if os.path.isdir(out) or not os.path.basename(out):
        raise UserError(f'out={out} is a folder; expected the name of a file')
    runs = [read_run(path, name) for path, name in zip(paths, names or run_names(paths), strict=True)]
    found = set().union(*(run.logged_keys() for run in runs))
    if keys is None:
        keys = [key for key in DEFAULT_KEYS if key in found]
        if not keys:
            raise UserError(f'none of {", ".join(DEFAULT_KEYS)} was logged; found {", ".join(sorted(found))}')
    if unknown := [key for key in keys if key not in found]:
        raise UserError(f'key {", ".join(unknown)} was not logged; found {", ".join(sorted(found))}')
    panels = {
        key: [_curve(run, key, number, weight) for number, run in enumerate(runs) if key in run.logged_keys()]
        for key in keys
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
    """Return a header, and a row per run and iteration."""
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
