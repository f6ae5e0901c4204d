"""Train although some files of a dataset are bad."""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmseg.registry import DATASETS

from ..errors import BadSampleError, UserError
from .label_map import LoadLabelMap

_MOST_IN_A_ROW = 100


@DATASETS.register_module()
class SkipBadSamples:
    """Take the next sample of a dataset in place of one whose image or mask is bad.

    What is bad is decided by the transforms :class:`~.load_image.LoadImage` and :class:`~.label_map.LoadLabelMap`,
    which the pipeline must use. They do so before random transforms, so which sample takes the place depends on
    the files alone, and a resumed training gets the same samples. Each bad sample is a warning in the log.

    Args:
        dataset: a dataset or its config; also a wrapper such as ``ConcatDataset``.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.dataset.full_init()
        # In shared memory: the workers of the loader write, the main process reads.
        self._is_bad = torch.zeros(len(self.dataset), dtype=torch.bool).share_memory_()
        self._reasons: dict[int, str] = {}  # of those that the main process knows of
        for one in plain_datasets(self.dataset):
            classes = one.metainfo.get('classes')
            for transform in one.pipeline.transforms:
                if isinstance(transform, LoadLabelMap) and transform.num_classes is None and classes:
                    transform.num_classes = max(len(classes), 2)  # one class has the labels 0 and 1 in binary mode

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset':  # not there yet while a worker unpickles this
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """Load a sample, or the next one that is not bad.

        Raises:
            UserError: many samples in a row are bad: the fault is hardly in the files.
        """
        for i in range(index, index + min(len(self), _MOST_IN_A_ROW)):
            try:
                return self.dataset[i % len(self)]
            except BadSampleError as error:
                reason = str(error)
            if not self._is_bad[i % len(self)]:
                self._is_bad[i % len(self)] = True
                print_log(f'skipped a bad sample: {reason}', 'current', logging.WARNING)
        raise UserError(f'{min(len(self), _MOST_IN_A_ROW)} samples in a row are bad, the last one because {reason}')

    def bad_samples(self) -> list[str]:
        """Return why each of the bad samples so far was skipped; the messages begin with the path."""
        self.new_bad_samples()
        return [self._reasons[i] for i in sorted(self._reasons)]

    def new_bad_samples(self) -> list[str]:
        """Return the reasons of the bad samples that were found since the last call."""
        if int(self._is_bad.count_nonzero()) == len(self._reasons):
            return []
        found = {}
        for i in self._is_bad.nonzero().flatten().tolist():
            if i in self._reasons:
                continue
            try:
                self.dataset[i]
            except BadSampleError as error:
                found[i] = str(error)
            else:
                found[i] = f'{self.dataset.get_data_info(i)["img_path"]}: bad before, whole now'
        self._reasons.update(found)
        return list(found.values())


def plain_datasets(dataset: Any) -> Iterator[BaseDataset]:
    """Yield the datasets that read files, also those inside of wrappers such as ``ConcatDataset``."""
    wrapped = getattr(dataset, 'datasets', None) or getattr(dataset, 'dataset', None)
    if wrapped is None:
        yield dataset
    else:
        for inner in wrapped if isinstance(wrapped, list | tuple) else [wrapped]:
            yield from plain_datasets(inner)
