"""Logits of a whole image that exist one tile at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .axis_map import AxisMap

# Small enough for a CPU's cache, large enough to keep a GPU busy; in bytes of logits.
_TILE_BYTES = {'cpu': 4 << 20, 'cuda': 128 << 20}


@dataclass(frozen=True)
class LogitMap:
    """Logits of one image, K classes at H x W pixels, computed where they are asked for.

    Such a map is hundreds of times as large as what the head put out, or as
    the labels that are wanted. So only the head's logits are kept; a tile of
    the map is ``rows @ logits @ columns.T``. Tiles have the classes in the
    middle, which makes that two plain matrix products (in TF32, too, where that
    is allowed for float32).

    Attributes:
        logits: (h, K, w) of the head; those of sliding windows stand beside
            and below each other.
        rows: from h to H.
        columns: from w to W.
    """

    logits: Tensor
    rows: AxisMap
    columns: AxisMap

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, K, W)"""
        return len(self.rows), self.logits.shape[1], len(self.columns)

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """Logits (rows, K, columns) of a part of the image."""
        from_rows, row_matrix = self.rows.dense(rows, self.logits.device)
        from_columns, column_matrix = self.columns.dense(columns, self.logits.device)
        part = self.logits[from_rows, :, from_columns]
        _, K, few = part.shape
        with torch.autocast(part.device.type, enabled=False):
            part = row_matrix @ part.reshape(len(part), K * few)
            part = part.view(-1, few) @ column_matrix.T
        return part.view(-1, K, len(column_matrix))

    def add_tile_gradient(self, gradient: Tensor, tile_gradient: Tensor, rows: slice, columns: slice) -> None:
        """Transpose of :meth:`tile`: add the gradient of a tile to that of ``logits``, in place."""
        to_rows, row_matrix = self.rows.dense(rows, gradient.device)
        to_columns, column_matrix = self.columns.dense(columns, gradient.device)
        r, K, c = tile_gradient.shape
        part = tile_gradient.view(r * K, c) @ column_matrix
        part = row_matrix.T @ part.view(r, -1)
        gradient[to_rows, :, to_columns] += part.view(len(part), K, -1)

    def full(self) -> Tensor:
        """All of it, (K, H, W)."""
        H, K, W = self.shape
        out = self.logits.new_empty(K, H, W)
        for rows, columns in self.tiles():
            out[:, rows, columns] = self.tile(rows, columns).transpose(0, 1)
        return out

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of tiles that cover the image."""
        H, K, W = self.shape
        tile_bytes = _TILE_BYTES.get(self.logits.device.type, _TILE_BYTES['cuda'])
        pixels = max(tile_bytes // (K * self.logits.element_size()), 1)
        width = min(W, max(128, int(pixels**0.5)))
        height = max(pixels // width, 1)
        for y in range(0, H, height):
            for x in range(0, W, width):
                yield slice(y, min(y + height, H)), slice(x, min(x + width, W))


def argmax_labels(maps: Sequence[LogitMap], threshold: float = 0.5) -> Tensor:
    """The class of each pixel: of the highest logit, or the highest mean probability over several maps.

    Args:
        maps: of the same image and size.
        threshold: of maps of one class, what the probability of the
            foreground has to exceed.

    Returns:
        (H, W) int64; of maps of one class 0 and 1 in their own dtype, as mmseg.
    """
    H, K, W = maps[0].shape
    logits = maps[0].logits
    out = torch.empty(H, W, dtype=torch.long if K > 1 else logits.dtype, device=logits.device)
    for rows, columns in maps[0].tiles():
        if K == 1:
            out[rows, columns] = (mean_probabilities(maps, rows, columns)[:, 0] > threshold).to(out)
        elif len(maps) == 1:
            out[rows, columns] = most_likely(maps[0].tile(rows, columns))
        else:
            out[rows, columns] = most_likely(mean_probabilities(maps, rows, columns))
    return out


def mean_probabilities(maps: Sequence[LogitMap], rows: slice, columns: slice) -> Tensor:
    """The mean over several maps of softmax, or of sigmoid for one class: (rows, K, columns)."""
    total: Tensor | None = None
    for m in maps:
        tile = m.tile(rows, columns)
        tile = tile.softmax(dim=1) if tile.shape[1] > 1 else tile.sigmoid()
        total = tile if total is None else total.add_(tile)
    assert total is not None
    return total.div_(len(maps))


def most_likely(scores: Tensor) -> Tensor:
    """``scores.argmax(dim=1)`` of (rows, K, columns), the first of equals.

    torch's CPU kernel walks a dimension that is not the last one element at a
    time. Finding the maximum first and the place where it stands second are
    vectorised, and take a third of the time while a place fits into a byte.
    """
    K = scores.shape[1]
    if scores.device.type != 'cpu' or K > 256:
        return scores.argmax(dim=1)
    # The first of equals has the largest code.
    codes = torch.arange(K - 1, -1, -1, dtype=torch.uint8)
    hits = scores == scores.amax(dim=1, keepdim=True)
    return K - 1 - (hits * codes[:, None]).amax(dim=1).long()
