"""Time of the training pipeline's transforms."""

import copy
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import cv2
import torch
from mmengine.config import Config
from mmseg.registry import DATASETS

from .cases import load_config

# Our loaders, what mmseg's configs have in their place, and the arguments that both have.
_LOADERS = {
    'LoadImage': ('LoadImageFromFile', ('to_float32', 'color_type', 'imdecode_backend', 'backend_args')),
    'LoadLabelMap': ('LoadAnnotations', ('reduce_zero_label', 'imdecode_backend', 'backend_args')),
}


class LoaderTimes(NamedTuple):
    """Milliseconds that the training pipeline takes for an image.

    Attributes:
        transforms: name and time of each transform.
        beside: the same with mmseg's loaders in place of ours, empty unless asked for.
    """

    transforms: list[tuple[str, float]]
    beside: list[tuple[str, float]]

    @property
    def cost_of_loaders(self) -> float:
        """Time of our loaders over that of mmseg's, as a share of the pipeline with mmseg's."""
        ours, theirs = (
            sum(ms for (name, _), (_, ms) in zip(self.transforms, times, strict=True) if name in _LOADERS)
            for times in (self.transforms, self.beside)
        )
        return (ours - theirs) / sum(ms for _, ms in self.beside)


def loader(
    config: str, options: Any = None, images: int = 50, vs_mmseg: bool = False, skip_bad: bool = False
) -> LoaderTimes:
    """Measure the milliseconds that each transform of the training pipeline takes for an image.

    Args:
        config: config with a ``train_dataloader``, whose dataset is read.
        options: overrides of config entries.
        images: number of images to read.
        vs_mmseg: also take ``LoadImageFromFile`` and ``LoadAnnotations`` in place of our loaders. Both take turns, and
            the median of the images counts, not the mean.
        skip_bad: as in training with ``skip_bad=True``, where labels are compared with the number of classes.

    Raises:
        FileNotFoundError: the config or the dataset does not exist.
    """
    from ...engine import check_datasets
    from ...engine.guards import skip_bad_samples

    cfg = load_config(config, options)
    check_datasets(cfg, ('train_dataloader',))
    plain = _with_loaders_of_mmseg(cfg) if vs_mmseg else None
    if skip_bad:
        skip_bad_samples(cfg)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    pipelines = [dataset.pipeline.transforms]
    if plain is not None:
        pipelines.append(DATASETS.build(plain.train_dataloader.dataset).pipeline.transforms)
    seconds: list[list[list[float]]] = [[[] for _ in transforms] for transforms in pipelines]
    with _one_thread():
        for i in range(images + 2):  # two images to warm up
            for k in range(len(pipelines)):
                turn = (i + k) % len(pipelines)
                data = dataset.get_data_info(i % len(dataset))
                for transform, of_transform in zip(pipelines[turn], seconds[turn], strict=True):
                    start = time.perf_counter()
                    data = transform(data)
                    of_transform.append(time.perf_counter() - start)
    average = statistics.mean if plain is None else statistics.median
    times = [
        [(type(t).__name__, average(s[2:]) * 1e3) for t, s in zip(transforms, of_pipeline, strict=True)]
        for transforms, of_pipeline in zip(pipelines, seconds, strict=True)
    ]
    return LoaderTimes(times[0], times[1] if plain is not None else [])


def _with_loaders_of_mmseg(cfg: Config) -> Config:
    cfg = copy.deepcopy(cfg)  # copy() shares the pipelines
    pipeline = cfg.train_dataloader.dataset.pipeline
    for i, transform in enumerate(pipeline):
        if transform['type'] in _LOADERS:
            name, arguments = _LOADERS[transform['type']]
            pipeline[i] = dict(type=name, **{key: transform[key] for key in arguments if key in transform})
    return cfg


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread, as in a worker of the data loader."""
    threads, opencv = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(opencv)
