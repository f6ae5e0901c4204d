"""Check a dataset before training on it."""

import time
from typing import Any

from mmengine.config import Config

from ...errors import UserError
from . import configuration
from .configuration import ModelSettings
from .files import FileInspector
from .labels import label_problems, labels_hint, palette_hint
from .names import Duplicates, find_unused_files, naming_hint
from .results import FILE_PROBLEMS, Problem, Report, SplitStatistics
from .workers import available_cores, inspect_all

__all__ = ['Problem', 'Report', 'check_dataset']


def check_dataset(cfg: Config, workers: int | None = None, progress: bool = True) -> Report:
    """Read every image and mask of a config as training and testing would, and report problems.

    Memory grows by 16 bytes per image, which find duplicates.

    Args:
        cfg: the whole config.
        workers: number of processes, by default one per core. With 1, this
            process reads the files.
        progress: show a progress bar on stderr.

    Raises:
        FileNotFoundError: a folder of the dataset does not exist.
        UserError: the config has no dataset or no classes, a setting is wrong
            for every file, or a worker process died.
    """
    if workers is not None and workers < 1:
        raise UserError(f'workers={workers}; expected at least 1')
    workers = workers or available_cores()
    model, datasets = ModelSettings.from_config(cfg), configuration.build_datasets(cfg)
    classes = configuration.class_names(datasets)
    problems = list(configuration.find_contradictions(cfg, model, datasets))
    inspectors = [FileInspector(split, dataset, model) for split, group in datasets.items() for dataset in group]
    for inspector in inspectors:
        configuration.check_reduce_zero_label(inspector.split, inspector.dataset)
    start = time.perf_counter()
    splits = {split: SplitStatistics() for split in datasets}
    duplicates = Duplicates(inspectors)
    for k, statistics in inspect_all(inspectors, workers, progress):
        duplicates.add(k, statistics.digests)
        statistics.digests = {}
        splits[inspectors[k].split].merge(statistics)
    seconds = time.perf_counter() - start
    for split, statistics in splits.items():
        for dataset in datasets[split]:
            find_unused_files(dataset, statistics)
        problems += _file_problems(split, statistics, datasets[split], model)
        problems += label_problems(split, statistics, datasets[split][0], classes, model)
        problems += configuration.check_normalisation(split, statistics.max_value, model)
    problems += duplicates.problems()
    problems.sort(key=lambda problem: problem.severity)
    return Report(cfg.filename or '', classes, model.ignore_index, splits, problems, seconds, workers)


def _file_problems(split: str, statistics: SplitStatistics, datasets: list[Any], model: ModelSettings) -> list[Problem]:
    """Return the problems with files of a split, each with the hint that fits the files."""
    problems = []
    for kind, (severity, message, hint) in FILE_PROBLEMS.items():
        found = statistics.file_problems.get(kind)
        if found is None:
            continue
        if kind == 'image_without_mask':
            hint = next(filter(None, (naming_hint(dataset, found.files) for dataset in datasets)), '')
        elif kind == 'labels_outside':
            hint = labels_hint(statistics, datasets[0], model)
        elif kind == 'mask_colour':
            hint = palette_hint(statistics) or hint
        problems.append(Problem(severity, split, kind, message, hint, found.count, found.files))
    return problems
