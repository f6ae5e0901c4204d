"""Generate a small dataset, to try training and evaluation without a download.

The images show overlapping shapes on a textured ground. Folders and labels are
those of ADE20K: class k is stored as k + 1, and 0 means "no class" (here the
edges of the shapes), so ``reduce_zero_label=True`` must be set.

Colour does not reveal the class: shapes are light or dark in any hue, and the
ground lies in between. Some classes are outlines with a plain fill, others are
textures that appear on several outlines.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from ..errors import ExistingFileError, FileAccessError, UserError

Mask = np.ndarray  # (H, W) bool
Image = np.ndarray  # (H, W, 3) uint8, BGR


def _polygon(angles: np.ndarray, radii: np.ndarray | float) -> np.ndarray:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.reshape(radii, (-1, 1))


def _regular(corners: int) -> np.ndarray:
    return _polygon(np.arange(corners) * 2 * np.pi / corners, 1.0)


def _star() -> np.ndarray:
    return _polygon(np.arange(10) * np.pi / 5, np.tile([1.0, 0.4], 5))


def _cross() -> np.ndarray:
    a, b = 0.32, 0.95
    return np.array(
        [[a, b], [a, a], [b, a], [b, -a], [a, -a], [a, -b], [-a, -b], [-a, -a], [-b, -a], [-b, a], [-a, a], [-a, b]]
    )


# Contours within a circle of radius 1; the second one is a hole.
_OUTLINES = {
    'disc': [_regular(48)],
    'ring': [_regular(48), 0.55 * _regular(48)],
    'square': [_regular(4)],
    'triangle': [_regular(3)],
    'star': [_star()],
    'cross': [_cross()],
}


def _plain(u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    return np.zeros(u.shape, bool)


def _striped(u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    return (u / period) % 1 < 0.5


def _checkered(u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    return _striped(u, v, period) ^ _striped(v, u, period)


def _dotted(u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    return np.hypot((u / period) % 1 - 0.5, (v / period) % 1 - 0.5) < 0.3


@dataclass(frozen=True)
class ShapeClass:
    """A class of the dataset: the outlines and the fill of its shapes."""

    name: str
    outlines: tuple[str, ...] = ()
    pattern: Callable[[np.ndarray, np.ndarray, float], np.ndarray] = _plain
    colour: tuple[int, int, int] = (0, 0, 0)  # RGB, for pictures of label maps


ALL_CLASSES = (
    ShapeClass('ground', colour=(90, 90, 90)),
    ShapeClass('disc', ('disc',), colour=(230, 25, 75)),
    ShapeClass('striped', ('disc', 'square', 'triangle'), _striped, (255, 225, 25)),
    ShapeClass('ring', ('ring',), colour=(0, 130, 200)),
    ShapeClass('checkered', ('disc', 'square', 'triangle'), _checkered, (245, 130, 48)),
    ShapeClass('triangle', ('triangle',), colour=(60, 180, 75)),
    ShapeClass('dotted', ('disc', 'square', 'triangle'), _dotted, (70, 240, 240)),
    ShapeClass('square', ('square',), colour=(145, 30, 180)),
    ShapeClass('star', ('star',), colour=(240, 50, 230)),
    ShapeClass('cross', ('cross',), colour=(170, 255, 195)),
)


def draw_scene(rng: np.random.Generator, height: int, width: int, num_classes: int) -> tuple[Image, np.ndarray]:
    """Draw one labelled scene.

    Args:
        rng: random generator.
        height: height in pixels.
        width: width in pixels.
        num_classes: number of classes to use, the first of :data:`ALL_CLASSES`.

    Returns:
        (H, W, 3) uint8 BGR image, and (H, W) uint8 labels: k + 1 for class k,
        0 for no class.
    """
    image = _ground(rng, height, width)
    labels = np.ones((height, width), np.uint8)
    for _ in range(rng.integers(3, 8)):
        index = int(rng.integers(1, num_classes))
        mask, u, v, radius = _place(rng, ALL_CLASSES[index], height, width)
        fills = [_colour(rng, 165, 245), _colour(rng, 10, 90)]
        first, second = fills if rng.random() < 0.5 else reversed(fills)
        pattern = ALL_CLASSES[index].pattern(u, v, radius * rng.uniform(0.3, 0.42))
        image[mask] = np.where(pattern[..., None], second, first)[mask]
        labels[mask] = index + 1
        # Edges have no class, like label 0 of ADE20K, which training and evaluation must ignore.
        edge = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
        labels[edge] = 0
    left, right = rng.uniform(0.85, 1.15, 2).tolist()
    shade = np.linspace(left, right, width)[None, :, None]
    noisy = cv2.GaussianBlur(image, (3, 3), 0.6) * shade + rng.normal(0, 6, image.shape)
    return noisy.clip(0, 255).astype(np.uint8), labels


def _ground(rng: np.random.Generator, height: int, width: int) -> Image:
    """Draw blotches between two colours, at three scales."""
    field = np.zeros((height, width), np.float32)
    for cells in (3, 6, 12):
        coarse = rng.random((cells, cells), dtype=np.float32)
        field += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) / cells
    field = (field - field.min()) / (np.ptp(field) + 1e-6)
    low, high = _colour(rng, 95, 125), _colour(rng, 125, 155)
    return (low + (high - low) * field[..., None]).astype(np.uint8)


def _colour(rng: np.random.Generator, darkest: float, lightest: float) -> np.ndarray:
    """Return a random hue around a random grey between two levels."""
    return (rng.uniform(darkest, lightest) + rng.uniform(-45, 45, 3)).clip(0, 255)


def _place(
    rng: np.random.Generator, shape: ShapeClass, height: int, width: int
) -> tuple[Mask, np.ndarray, np.ndarray, float]:
    """Place an outline at random and return its mask, rotated coordinates u and v (H, W), and radius."""
    radius = rng.uniform(0.18, 0.32) * min(height, width)
    cx, cy = rng.uniform(0, width), rng.uniform(0, height)
    turn = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    contours = [c @ rotation * radius + (cx, cy) for c in _OUTLINES[str(rng.choice(shape.outlines))]]
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.round(c).astype(np.int32) for c in contours], 1)
    dx, dy = np.meshgrid(np.arange(width) - cx, np.arange(height) - cy)
    u, v = np.cos(turn) * dx + np.sin(turn) * dy, -np.sin(turn) * dx + np.cos(turn) * dy
    return mask > 0, u, v, radius


def make_shapes(
    out_dir: str, num_images: int = 400, size: tuple[int, int] = (192, 256), num_classes: int = 5, seed: int = 0
) -> None:
    """Write the dataset, whole or not at all.

    Images are in ``images/{training,validation}/*.jpg``, label maps in
    ``annotations/{training,validation}/*.png``. One image in five is for
    validation. The same arguments yield the same scenes.

    Args:
        out_dir: folder to write to. It must not contain ``images`` or
            ``annotations``.
        num_images: number of images, at least 5.
        size: (height, width) in pixels, at least 32 each.
        num_classes: 2 to ``len(ALL_CLASSES)``, including the ground.
        seed: seed of the random generator.

    Raises:
        UserError: an argument is out of range.
        FileExistsError: ``out_dir`` has an ``images`` or ``annotations`` folder.
        OSError: a file cannot be written.
    """
    if num_images < 5:
        raise UserError(f'num_images={num_images}; expected at least 5, one of them for validation')
    if min(size) < 32:
        raise UserError(f'size={size[0]}x{size[1]}; expected at least 32x32 pixels')
    if not 2 <= num_classes <= len(ALL_CLASSES):
        raise UserError(f'num_classes={num_classes}; expected 2 to {len(ALL_CLASSES)}')
    for kind in ('images', 'annotations'):
        if os.path.exists(os.path.join(out_dir, kind)):
            raise ExistingFileError(f'{os.path.join(out_dir, kind)} exists; remove it or choose another folder')
    os.makedirs(out_dir, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.part-', dir=out_dir) as part:
        for kind in ('images', 'annotations'):
            for split in ('training', 'validation'):
                os.makedirs(os.path.join(part, kind, split))
        for i in range(num_images):
            # One generator per image, so that image i does not depend on the number of images.
            image, labels = draw_scene(np.random.default_rng((seed, i)), *size, num_classes)
            split, name = ('validation' if i % 5 == 4 else 'training'), f'scene_{i:05d}'
            _write(os.path.join(part, 'images', split, f'{name}.jpg'), image, [cv2.IMWRITE_JPEG_QUALITY, 92])
            _write(os.path.join(part, 'annotations', split, f'{name}.png'), labels, [])
        for kind in ('images', 'annotations'):
            os.rename(os.path.join(part, kind), os.path.join(out_dir, kind))


def _write(path: str, image: np.ndarray, params: list[int]) -> None:
    if not cv2.imwrite(path, image, params):
        raise FileAccessError(f'cannot write {path}: is the disk full?')
