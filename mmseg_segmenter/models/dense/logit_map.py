"""Compute the logits of an image tile by tile."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import UserError
from .axis_map import AxisMap

# Size of a tile in bytes: it fits into the cache of a CPU, and keeps a GPU busy.
_TILE_BYTES = {'cpu': 4 << 20, 'cuda': 128 << 20}


@dataclass(frozen=True)
class LogitMap:
    """Hold the logits of one image, and compute them at H x W pixels for K classes on demand.

    At the size of the image, logits are hundreds of times as large as the
    output of the head and as the labels. So only the logits of the head are
    stored, and a tile is computed as ``rows @ logits @ columns.T``. The
    classes are the middle dimension, so that these are two plain matrix
    products (in TF32 too, where that is allowed for float32).

    Attributes:
        logits: (h, K, w) logits of the head; with sliding windows as in
            :class:`MergedLogits`.
        rows: from h to H.
        columns: from w to W.
    """

    logits: Tensor
    rows: AxisMap
    columns: AxisMap

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (H, K, W)."""
        return len(self.rows), self.logits.shape[1], len(self.columns)

    @property
    def tile_channels(self) -> int:
        """Return how many numbers a pixel of a tile takes while it is computed."""
        return self.logits.shape[1]

    def stored_sum(self) -> Tensor:
        """Return the sum of all that is stored, which is finite only if all of it is."""
        return self.logits.sum()

    def probabilities(self, rows: slice, columns: slice) -> Tensor:
        """Return the softmax (sigmoid for one class) of a part of the image, (rows, K, columns)."""
        tile = self.tile(rows, columns)
        return tile.softmax(dim=1) if tile.shape[1] > 1 else tile.sigmoid()

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """Return the logits (rows, K, columns) of a part of the image."""
        from_rows, row_matrix = self.rows.dense(rows, self.logits.device)
        from_columns, column_matrix = self.columns.dense(columns, self.logits.device)
        part = self.logits[from_rows, :, from_columns]
        h, K, w = part.shape
        with torch.autocast(part.device.type, enabled=False):
            part = row_matrix @ part.reshape(h, K * w)  # (rows, K * w)
            part = part.view(-1, w) @ column_matrix.T  # (rows * K, columns)
        return part.view(-1, K, len(column_matrix))

    def add_tile_gradient(self, gradient: Tensor, tile_gradient: Tensor, rows: slice, columns: slice) -> None:
        """Add the gradient of a tile to that of ``logits``, in place: the transpose of :meth:`tile`.

        Args:
            gradient: (h, K, w) gradient of ``logits``.
            tile_gradient: (rows, K, columns).
            rows: rows of the tile.
            columns: columns of the tile.
        """
        to_rows, row_matrix = self.rows.dense(rows, gradient.device)
        to_columns, column_matrix = self.columns.dense(columns, gradient.device)
        r, K, c = tile_gradient.shape
        part = tile_gradient.view(r * K, c) @ column_matrix  # (r * K, w)
        part = row_matrix.T @ part.view(r, -1)  # (h, K * w)
        gradient[to_rows, :, to_columns] += part.view(len(part), K, -1)

    def full(self) -> Tensor:
        """Return all logits, (K, H, W)."""
        H, K, W = self.shape
        out = self.logits.new_empty(K, H, W)
        for rows, columns in self.tiles():
            out[:, rows, columns] = self.tile(rows, columns).transpose(0, 1)
        return out

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """Yield rows and columns of tiles that cover the image."""
        H, _, W = self.shape
        tile_bytes = _TILE_BYTES.get(self.logits.device.type, _TILE_BYTES['cuda'])
        pixels = max(tile_bytes // (self.tile_channels * self.logits.element_size()), 1)
        width = min(W, max(128, int(pixels**0.5)))
        height = max(pixels // width, 1)
        for y in range(0, H, height):
            for x in range(0, W, width):
                yield slice(y, min(y + height, H)), slice(x, min(x + width, W))


def argmax_labels(maps: Sequence[LogitMap], threshold: float = 0.5, dtype: torch.dtype | None = None) -> Tensor:
    """Return the class of each pixel.

    It is the class with the highest logit or, with several maps, the highest
    mean probability.

    Args:
        maps: logits of the same image at the same size.
        threshold: with a single class, a pixel is foreground if its
            probability is above this.
        dtype: type of the result. Default: that of mmseg, int64, or with a
            single class the dtype of the logits.

    Returns:
        (H, W). With a single class, 0 and 1.
    """
    H, K, W = maps[0].shape
    logits = maps[0].logits
    out = torch.empty(H, W, dtype=dtype or (torch.long if K > 1 else logits.dtype), device=logits.device)
    for rows, columns in maps[0].tiles():
        if K == 1:
            out[rows, columns] = (mean_probabilities(maps, rows, columns)[:, 0] > threshold).to(out)
        elif len(maps) == 1:
            out[rows, columns] = most_likely(maps[0].tile(rows, columns))
        else:
            out[rows, columns] = most_likely(mean_probabilities(maps, rows, columns))
    return out


def mean_probabilities(maps: Sequence[LogitMap], rows: slice, columns: slice) -> Tensor:
    """Return the mean probability of each class over several maps, (rows, K, columns)."""
    total: Tensor | None = None
    for m in maps:
        tile = m.probabilities(rows, columns)
        total = tile if total is None else total.add_(tile)
    assert total is not None
    return total.div_(len(maps))


def most_likely(scores: Tensor) -> Tensor:
    """Return ``scores.argmax(dim=1)`` of (rows, K, columns), the first one of equal scores.

    On a CPU, torch's ``argmax`` along a dimension other than the last one is
    not vectorised. Computing the maximum, then where it is, takes a third of
    the time as long as a class number fits into a byte. Scores that are NaN
    give the last class.
    """
    K = scores.shape[1]
    if scores.device.type != 'cpu' or K > 256 or scores.stride(1) > scores.stride(0):  # classes outermost: MaskMap
        return scores.argmax(dim=1)
    # The first of equals has the largest code.
    codes = torch.arange(K - 1, -1, -1, dtype=torch.uint8)
    hits = scores == scores.amax(dim=1, keepdim=True)
    return K - 1 - (hits * codes[:, None]).amax(dim=1).long()


def check_finite(maps: Sequence[Sequence[LogitMap]], names: Sequence[str]) -> None:
    """Raise an error if a logit of an image is NaN or infinite, because no class is then the most likely one.

    Only the logits of the head are looked at, which takes far less time than
    computing them. The check waits for the GPU, so labels should be computed
    first.

    Args:
        maps: the maps of each image.
        names: name of each image.

    Raises:
        UserError: names the first such image.
    """
    # A sum is finite only if all its terms are, and needs no memory.
    sums = torch.stack([torch.stack([m.stored_sum() for m in maps_of_image]).sum() for maps_of_image in maps])
    for name, total in zip(names, sums.cpu(), strict=True):
        check_finite_logits(total, name)


def check_finite_logits(logits: Tensor, name: str) -> None:
    """Raise an error if a logit is NaN or infinite.

    Args:
        logits: of any shape.
        name: what they are of.

    Raises:
        UserError: one is.
    """
    if not logits.isfinite().all():
        raise UserError(
            f'{name}: the logits of the model are not finite (NaN or infinity); expected numbers. Check the '
            'weights for NaN; if they have none and the model runs in fp16, use bf16 or float32'
        )
