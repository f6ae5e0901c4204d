"""What a user wants of each pixel, computed tile by tile: label, probabilities, confidence."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .logit_map import LogitMap, argmax_labels, mean_probabilities


def label_map(maps: Sequence[LogitMap], threshold: float = 0.5) -> Tensor:
    """Return the class of each pixel in the smallest integer type that holds it.

    As :func:`argmax_labels`, without an int64 map, which would take eight
    times the memory.

    Args:
        maps: of one image, at the same size; the mean over several is taken.
        threshold: probability above which a pixel of a one-class model is
            foreground.

    Returns:
        (H, W) uint8, or int32 above 256 classes.
    """
    return argmax_labels(maps, threshold, torch.uint8 if maps[0].shape[1] <= 256 else torch.int32)


def probability_map(maps: Sequence[LogitMap], dtype: torch.dtype = torch.float16) -> Tensor:
    """Return the probability of every class at every pixel.

    Args:
        maps: as :func:`label_map`.
        dtype: of the result; the softmax itself runs in float32.

    Returns:
        (K, H, W); of a one-class model (2, H, W), background and foreground.
    """
    H, K, W = maps[0].shape
    out = torch.empty(max(K, 2), H, W, dtype=dtype, device=maps[0].logits.device)
    for rows, columns in maps[0].tiles():
        tile = _two_classes(mean_probabilities(maps, rows, columns))
        out[:, rows, columns] = tile.transpose(0, 1).to(dtype)
    return out


def confidence_map(maps: Sequence[LogitMap], dtype: torch.dtype = torch.float16) -> Tensor:
    """Return the probability of the most likely class of each pixel, (H, W).

    Args: as :func:`probability_map`.
    """
    H, _, W = maps[0].shape
    out = torch.empty(H, W, dtype=dtype, device=maps[0].logits.device)
    for rows, columns in maps[0].tiles():
        out[rows, columns] = _two_classes(mean_probabilities(maps, rows, columns)).amax(dim=1).to(dtype)
    return out


def _two_classes(tile: Tensor) -> Tensor:
    return tile if tile.shape[1] > 1 else torch.cat((1 - tile, tile), dim=1)
