"""Create a tiny dataset such as a user might have."""

from pathlib import Path

import cv2
import numpy as np

CLASSES = ['ground', 'left', 'right']


def make_dataset(root: Path, train: int = 6, val: int = 3, size: tuple[int, int] = (40, 48), seed: int = 0) -> Path:
    """Write noisy images with labels 0 to 2 in three areas, into the folders of the example config."""
    rng = np.random.default_rng(seed)
    for split, count in (('train', train), ('val', val)):
        (root / 'images' / split).mkdir(parents=True)
        (root / 'annotations' / split).mkdir(parents=True)
        for i in range(count):
            labels = np.zeros(size, np.uint8)
            labels[8:, : 10 + i] = 1
            labels[8:, 30:] = 2
            labels[:2] = 255
            image = (rng.integers(0, 60, (*size, 3)) + 60 * (labels[..., None] % 4)).astype(np.uint8)
            cv2.imwrite(str(root / 'images' / split / f'{split}_{i}.jpg'), image)
            cv2.imwrite(str(root / 'annotations' / split / f'{split}_{i}.png'), labels)
    return root
