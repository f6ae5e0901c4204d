"""Load label maps of 16 bits, and label maps whose values are not class numbers."""

from collections.abc import Sequence
from typing import Any

import mmcv
import numpy as np
from mmengine import fileio
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import TRANSFORMS

from ..errors import UserError


@TRANSFORMS.register_module()
class LoadLabelMap(LoadAnnotations):
    """Load label maps with any values of up to 16 bits, in place of mmseg's ``LoadAnnotations``.

    ``LoadAnnotations`` casts labels to uint8, so that label 256 becomes 0. It
    also takes the values in the file as class numbers, so that a binary mask
    of 0 and 255 loses its foreground (255 is ignored).

    ``reduce_zero_label`` and the label map of the dataset work as in mmseg, but
    yield ``ignore_index`` where mmseg yields 255.

    Args:
        values: values in the file that stand for class 0, 1, ..., such as
            ``(0, 255)`` for a binary mask. By default, they are the class
            numbers.
        ignore_index: label of pixels without a class, in the file and in the
            result. If it is above 255, set it in the other places that
            docs/own_dataset.md lists too. A value in ``values`` is a class
            even if it equals this number.
        imdecode_backend: as in ``LoadAnnotations``.
        backend_args: as in ``LoadAnnotations``.

    Raises:
        UserError: the file does not have a single channel of integers, or one
            of them is not in ``values``; names the file and what was found.
    """

    def __init__(
        self,
        values: Sequence[int] | None = None,
        ignore_index: int = 255,
        imdecode_backend: str = 'pillow',
        backend_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(imdecode_backend=imdecode_backend, backend_args=backend_args)
        if values is not None and (len(set(values)) != len(values) or not all(0 <= v < 1 << 16 for v in values)):
            raise UserError(f'LoadLabelMap: values={tuple(values)}; expected different numbers from 0 to 65535')
        if not 0 <= ignore_index < 1 << 16:
            raise UserError(f'LoadLabelMap: ignore_index={ignore_index}; expected 0 to 65535')
        self.values = None if values is None else tuple(values)
        self.ignore_index = ignore_index
        self._tables: dict[tuple[bool, tuple[tuple[int, int], ...]], np.ndarray] = {}

    def _load_seg_map(self, results: dict[str, Any]) -> None:
        path = results['seg_map_path']
        content = fileio.get(path, backend_args=self.backend_args)
        stored = mmcv.imfrombytes(content, flag='unchanged', backend=self.imdecode_backend)
        if stored is None:
            raise UserError(f'{path} cannot be decoded as an image')
        if stored.ndim == 3 and stored.shape[2] == 1:
            stored = stored[..., 0]
        if stored.dtype == bool:  # 1-bit PNG
            stored = stored.astype(np.uint8)
        if stored.ndim != 2 or stored.dtype.kind not in 'iu':
            raise UserError(
                f'{path} has shape {stored.shape} and type {stored.dtype}, expected one channel of integers; '
                'tools/dataset_converters/rgb2labels.py converts masks with a colour per class to label maps'
            )
        if stored.dtype.itemsize > 2 and not 0 <= stored.min() <= stored.max() < 1 << 16:
            raise UserError(f'{path} has values {stored.min()} to {stored.max()}, expected 0 to 65535')
        table = self._table(bool(results.get('reduce_zero_label')), results.get('label_map') or {})
        labels = table[stored]
        if self.values is not None and (labels < 0).any():
            found = np.unique(stored[labels < 0])
            shown = ', '.join(map(str, found[:10])) + (', ...' if len(found) > 10 else '')
            raise UserError(
                f'{path}: found value {shown}; expected {", ".join(map(str, self.values))} or {self.ignore_index} '
                '(ignored)'
            )
        # uint8 if it suffices, because the transforms that follow take a quarter of the time on it
        results['gt_seg_map'] = labels.astype(np.uint8 if table.max() < 256 else np.uint16)
        results['seg_fields'].append('gt_seg_map')

    def _table(self, reduce_zero_label: bool, label_map: dict[int, int]) -> np.ndarray:
        """Return a (65536,) int32 table with the label of each stored value, -1 for unknown values."""
        key = (reduce_zero_label, tuple(label_map.items()))
        if key not in self._tables:
            classes = np.arange(1 << 16, dtype=np.int32)
            if self.values is not None:
                classes = np.full(1 << 16, -1, np.int32)
                classes[self.ignore_index] = self.ignore_index
                classes[list(self.values)] = np.arange(len(self.values))
            ignored = classes == self.ignore_index
            unknown = classes < 0
            if reduce_zero_label:
                ignored |= classes == 0
                classes = classes - 1
            mapped = classes.copy()
            for old, new in label_map.items():
                # mmseg's datasets map classes that are left out to 255
                mapped[classes == old] = self.ignore_index if new == 255 else new
            mapped[ignored] = self.ignore_index
            mapped[unknown] = -1
            self._tables[key] = mapped
        return self._tables[key]

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(values={self.values}, ignore_index={self.ignore_index}, '
            f"imdecode_backend='{self.imdecode_backend}', backend_args={self.backend_args})"
        )
