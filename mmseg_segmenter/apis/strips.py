"""Segment an image strip by strip, for images that do not fit into memory."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..models.dense import (
    AxisMap,
    LogitMap,
    WindowLogits,
    average_windows,
    check_finite,
    label_map,
    merge_windows,
    window_starts,
)
from ..models.segmentors import EoMT, Segmenter


class Strip(NamedTuple):
    """Labels of some rows of an image.

    Attributes:
        top: first row.
        labels: (rows, W) uint8, or int32 above 256 classes.
    """

    top: int
    labels: np.ndarray


@torch.no_grad()
def segment_strips(
    model: Segmenter,
    size: tuple[int, int],
    read_rows: Callable[[int, int], np.ndarray],
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[Strip]:
    """Segment the sliding windows of an image, one row of windows at a time.

    Labels equal those of the whole image at once. Memory holds one row of
    windows and the logits of those that overlap it, whatever the height.

    Args:
        model: in ``'slide'`` mode.
        size: height H and width W, at least the size of a window.
        read_rows: returns rows ``[top, bottom)`` as (rows, W, 3) uint8, in
            the channel order that the model's preprocessor expects, or as
            (rows, W, 4) where the last channel is 0 at pixels without data.
            Called from top to bottom; consecutive calls overlap. Windows
            without data are not segmented, so labels are arbitrary there.
        autocast: makes the context in which the network runs.

    Yields:
        Strips from top to bottom without gaps.

    Raises:
        UserError: the model is not in ``'slide'`` mode, the image is smaller
            than a window, or logits are not finite.
    """
    cfg = model.test_cfg
    if cfg.mode != 'slide':
        raise UserError(f"test_cfg.mode={cfg.mode!r}; expected 'slide' (with crop_size and stride) for large images")
    H, W = size
    window, stride = cfg.crop_size, cfg.stride
    if window[0] > H or window[1] > W:
        raise UserError(f'image of {H}x{W} pixels; expected at least one window of {window[0]}x{window[1]}')
    if isinstance(model, EoMT):
        raise UserError('model.type=EoMT: images larger than memory need a Segmenter; make the image smaller')
    device = model.data_preprocessor.device
    even = bool(cfg.get('even_windows'))
    tops = window_starts(H, window[0], stride[0], even)
    rows, kept, base = None, None, 0  # kept: (h', K, w) logits from position `base` on
    for i, top in enumerate(tops):
        band = torch.from_numpy(np.ascontiguousarray(read_rows(top, top + window[0]))).permute(2, 0, 1)
        merged = merge_windows(
            band[None],
            window,
            stride,
            cfg.get('window_batch_size', 4),
            segment=lambda crops, _: _segment(model, crops.to(device), autocast),
            align_corners=model.align_corners,
            crop_padding=cfg.get('size_divisor') is not None,
            even=even,
        )
        logits = merged.logits[0]  # (h, K, w)
        rows = rows or average_windows(H, tops, merged.rows, len(logits))
        kept, base = _append(kept, base, logits, rows.offsets[i])
        bottom = tops[i + 1] if i + 1 < len(tops) else H
        used = rows.to_image[top:bottom]
        first = int(used.index.min())
        kept, base = kept[first - base :], first
        local = AxisMap(used.index - base, used.weight)
        logit_map = LogitMap(kept, local, merged.columns)
        labels = label_map([logit_map], getattr(model.decode_head, 'threshold', 0.5))
        check_finite([[logit_map]], [f'rows {top} to {top + window[0]}'])
        yield Strip(top, labels.cpu().numpy())


def _append(kept: Tensor | None, base: int, logits: Tensor, offset: int) -> tuple[Tensor, int]:
    """Add the logits of a row of windows at their position, behind or (where logits are pixels) on top of others."""
    if kept is None:
        return logits, offset
    missing = offset + len(logits) - base - len(kept)
    if missing > 0:
        kept = torch.cat((kept, kept.new_zeros(missing, *kept.shape[1:])))
    kept[offset - base : offset - base + len(logits)] += logits
    return kept, base


def _segment(model: Segmenter, crops: Tensor, autocast: Callable[[], AbstractContextManager[Any]]) -> WindowLogits:
    """Segment windows (n, 3 or 4, height, width) of uint8 that have data."""
    colours, has_data = crops[:, :3], torch.ones(len(crops), dtype=torch.bool, device=crops.device)
    if crops.shape[1] == 4:
        has_data = (crops[:, 3] > 0).flatten(1).any(dim=1)  # of uint8, any() is no mask
        # One window is segmented even if none has data: it tells the shape of the logits.
        has_data[0] |= not has_data.any()
    batch = model.data_preprocessor(dict(inputs=list(colours[has_data])), False)['inputs']
    metas = [dict(img_shape=batch.shape[2:], ori_shape=batch.shape[2:])] * len(batch)
    with autocast():
        found = model.window_logits(batch, metas)
    logits = found.logits.new_zeros(len(crops), *found.logits.shape[1:])
    logits[has_data] = found.logits
    return WindowLogits(logits, found.size)
