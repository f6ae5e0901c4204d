"""Datasets of fixed augmentations, and of the features that a backbone computed from them."""

import os
import pickle
from typing import Any

import torch
from mmengine.structures import PixelData
from mmseg.registry import DATASETS
from mmseg.structures import SegDataSample
from torch import Tensor

from ...engine.random_state import seeded_random
from ...errors import UserError, describe
from .key import read_index

_PER_FOLDER = 1000


@DATASETS.register_module()
class FixedVariants:
    """Give each image of a dataset a number of augmentations that never change.

    Sample i is variant ``i // N`` of image ``i % N`` for N images. Its random transforms draw numbers that follow from
    ``seed``, the variant and the image.

    Args:
        dataset: a dataset or its config.
        variants: augmentations of each image.
        seed: of the random numbers.

    Raises:
        UserError: ``variants`` is not a positive number.
    """

    def __init__(self, dataset: Any, variants: int, seed: int = 0) -> None:
        if variants < 1:
            raise UserError(f'variants={variants}; expected 1 or more augmentations of each image')
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.dataset.full_init()
        self.variants, self.seed = variants, seed

    @property
    def metainfo(self) -> dict[str, Any]:
        """Classes and palette of the dataset."""
        return dict(self.dataset.metainfo)

    def full_init(self) -> None:
        """Do nothing; the dataset is loaded."""

    def __len__(self) -> int:
        return self.variants * len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """Load a sample."""
        variant, image = divmod(index, len(self.dataset))
        with seeded_random(self.seed, variant, image):
            return self.dataset[image]


@DATASETS.register_module()
class CachedFeatures:
    """Samples whose features ``tools/cache_features.py`` has computed.

    ``inputs`` of a sample are the feature maps of the backbone in place of an image; the model needs
    ``data_preprocessor.type='FeatureDataPreprocessor'``.

    Args:
        root: folder of the features.

    Raises:
        UserError: ``root`` has no features, or not yet all.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.index = read_index(root)
        missing = len(missing_samples(root, len(self)))
        if missing:
            raise UserError(
                f'{root} has {len(self) - missing} of {len(self)} samples; run tools/cache_features.py again, which '
                'computes the others'
            )

    @property
    def metainfo(self) -> dict[str, Any]:
        """Classes and palette of the dataset whose features these are."""
        return dict(self.index['metainfo'])

    def full_init(self) -> None:
        """Do nothing; there is nothing to load."""

    def __len__(self) -> int:
        return int(self.index['samples'])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Load a sample: feature maps (C, h, w), float32, and labels.

        Raises:
            UserError: its file is damaged or gone.
        """
        path = sample_path(self.root, index)
        try:
            content = torch.load(path, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise UserError(
                f'{path} cannot be read: {describe(error)}; remove it and run tools/cache_features.py again'
            ) from None
        labels = content['labels'].long()[None]
        size = tuple(labels.shape[1:])
        info = dict(img_path=content['img_path'], ori_shape=size, img_shape=size, pad_shape=size)
        sample = SegDataSample(metainfo=info, gt_sem_seg=PixelData(data=labels))
        return dict(inputs=tuple(features.float() for features in content['features']), data_samples=sample)


def sample_path(root: str, index: int) -> str:
    """Return the file of a sample."""
    return os.path.join(root, f'{index // _PER_FOLDER:05}', f'{index:08}.pt')


def missing_samples(root: str, number: int) -> list[int]:
    """Return which samples have no file; one look at each folder."""
    found: set[str] = set()
    for first in range(0, number, _PER_FOLDER):
        folder = os.path.dirname(sample_path(root, first))
        if os.path.isdir(folder):
            found.update(os.listdir(folder))
    return [i for i in range(number) if os.path.basename(sample_path(root, i)) not in found]


def sample_content(maps: list[Tensor], sample: SegDataSample, half: bool) -> dict[str, Any]:
    """Return what the file of a sample holds."""
    labels = sample.gt_sem_seg.data[0].cpu()
    dtype = torch.uint8 if labels.min() >= 0 and labels.max() < 256 else torch.int32
    return dict(
        features=[one.to('cpu', torch.float16 if half else torch.float32).clone() for one in maps],
        labels=labels.to(dtype),
        img_path=sample.get('img_path') or '',
    )
