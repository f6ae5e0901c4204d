"""Time of the training pipeline's transforms."""

import time
from typing import Any

import torch
from mmseg.registry import DATASETS

from .cases import load_config


def loader(config: str, options: Any = None, images: int = 50) -> list[tuple[str, float]]:
    """Measure the milliseconds that each transform of the training pipeline takes for an image.

    Args:
        config: config with a ``train_dataloader``, whose dataset is read.
        options: overrides of config entries.
        images: number of images to read.

    Raises:
        FileNotFoundError: the config or the dataset does not exist.
    """
    from ...engine import check_datasets

    cfg = load_config(config, options)
    check_datasets(cfg, ('train_dataloader',))
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    transforms = dataset.pipeline.transforms
    seconds = [0.0] * len(transforms)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker of the data loader
    try:
        for i in range(images + 2):
            data = dataset.get_data_info(i % len(dataset))
            for k, transform in enumerate(transforms):
                start = time.perf_counter()
                data = transform(data)
                seconds[k] += (time.perf_counter() - start) * (i >= 2)  # two images to warm up
    finally:
        torch.set_num_threads(threads)
    return [(type(t).__name__, s / images * 1e3) for t, s in zip(transforms, seconds, strict=True)]
