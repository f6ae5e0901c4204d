"""Load label maps of 16 bits, and label maps whose values are not class numbers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import TRANSFORMS

from ..errors import BadSampleError, UserError
from ..labels import LABELS_HINT, check_labels
from .image_files import MAX_PIXELS, decode, entries_named, open_image, read_file


class _Table(NamedTuple):
    """The label of each stored value.

    Attributes:
        wide: (65536,) int32, -1 for unknown values.
        narrow: (256,) uint8, of values of 8 bits; None if one of their labels, or the ignored label, is wider.
        keeps_8_bits: values of 8 bits are the labels.
    """

    wide: np.ndarray
    narrow: np.ndarray | None
    keeps_8_bits: bool

    @classmethod
    def of(cls, wide: np.ndarray, ignore_index: int) -> '_Table':
        """Derive the narrow table from the wide one."""
        first = wide[:256]
        narrow = first.astype(np.uint8) if max(ignore_index, first.max()) < 256 else None
        return cls(wide, narrow, bool((first == np.arange(256)).all()))


@TRANSFORMS.register_module()
class LoadLabelMap(LoadAnnotations):
    """Load label maps with any values of up to 16 bits, in place of mmseg's ``LoadAnnotations``.

    ``LoadAnnotations`` casts labels to uint8, so that label 260 becomes 4. It
    also takes the values in the file as class numbers, so that a binary mask
    of 0 and 255 loses its foreground (255 is ignored), and passes on masks of
    several channels or of another size than the image.

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
        num_classes: refuse other labels than 0 to ``num_classes`` - 1 and
            ``ignore_index``. By default, :class:`SkipBadSamples` sets it to
            the number of classes of the dataset; without that, the model
            checks the labels that reach it.
        reduce_zero_label: that of the dataset, which is the place to set it.
        imdecode_backend: as in ``LoadAnnotations``.
        max_pixels: larger files are refused before they are decoded.
        backend_args: as in ``LoadAnnotations``.
    """

    def __init__(
        self,
        values: Sequence[int] | None = None,
        ignore_index: int = 255,
        num_classes: int | None = None,
        reduce_zero_label: bool | None = None,
        imdecode_backend: str = 'pillow',
        max_pixels: int = MAX_PIXELS,
        backend_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(reduce_zero_label, imdecode_backend=imdecode_backend, backend_args=backend_args)
        if values is not None and (len(set(values)) != len(values) or not all(0 <= v < 1 << 16 for v in values)):
            raise UserError(f'LoadLabelMap: values={tuple(values)}; expected different numbers from 0 to 65535')
        if not 0 <= ignore_index < 1 << 16:
            raise UserError(f'LoadLabelMap: ignore_index={ignore_index}; expected 0 to 65535')
        self.values = None if values is None else tuple(values)
        self.ignore_index = ignore_index
        self.num_classes = num_classes
        self.max_pixels = max_pixels
        self._tables: dict[tuple[bool, tuple[tuple[int, int], ...]], _Table] = {}

    def _load_seg_map(self, results: dict[str, Any]) -> None:
        """Add ``gt_seg_map`` (H, W), uint8 or uint16, to a sample with ``seg_map_path``.

        Raises:
            BadSampleError: the file is not a whole image with one channel of integers, has another size than the
                image, or holds a value that is neither in ``values`` nor a class; names the file and what was found.
        """
        if 'seg_fields' not in results:  # mmseg's inference_model removes LoadAnnotations by name only
            return
        path = results['seg_map_path']
        with entries_named('dataset.data_prefix.seg_map_path', 'dataset.seg_map_suffix'):
            stored = self._read(path)
        image_size = results.get('ori_shape', stored.shape)[:2]
        if stored.shape != image_size:
            (h, w), (H, W) = stored.shape, image_size
            raise BadSampleError(
                f'{path}: the mask has {h}x{w} pixels (height x width), its image {results.get("img_path", "")} has '
                f'{H}x{W}; see dataset.data_prefix, dataset.img_suffix and dataset.seg_map_suffix in the config'
            )
        reduce_zero_label = bool(results.get('reduce_zero_label'))
        if self.reduce_zero_label not in (None, reduce_zero_label):
            raise UserError(
                f'LoadLabelMap has reduce_zero_label={self.reduce_zero_label}, the dataset has {reduce_zero_label}; '
                'set it in the dataset only'
            )
        table = self._table(reduce_zero_label, results.get('label_map') or {})
        if self.values is not None and (unknown := table.wide[stored] < 0).any():
            found = np.unique(stored[unknown])
            shown = ', '.join(map(str, found[:10])) + (', ...' if len(found) > 10 else '')
            raise BadSampleError(
                f'{path}: found value {shown}; expected {", ".join(map(str, self.values))} or {self.ignore_index} '
                '(ignored); see values of LoadLabelMap in dataset.pipeline'
            )
        labels = self._look_up(table, stored)
        if self.num_classes is not None:
            check_labels(labels, self.num_classes, self.ignore_index, path, int(reduce_zero_label), LABELS_HINT)
        results['gt_seg_map'] = labels
        results['seg_fields'].append('gt_seg_map')

    def _read(self, path: str) -> np.ndarray:
        """Return the values in a file, (H, W) uint8 or wider."""
        content = read_file(path, self.backend_args)
        stored = decode(content, path, 'unchanged', self.imdecode_backend, self.max_pixels)
        if stored.ndim == 3 and stored.shape[2] == 1:
            stored = stored[..., 0]
        if stored.dtype == bool:  # 1-bit PNG
            stored = stored.astype(np.uint8)
        if stored.ndim != 2 or stored.dtype.kind not in 'iu':
            advice = 'tools/dataset_converters/rgb2labels.py converts masks with a colour per class to label maps'
            if self.imdecode_backend != 'pillow' and open_image(content).mode == 'P':
                advice = (
                    f"imdecode_backend='{self.imdecode_backend}' of LoadLabelMap turns the numbers of a palette into "
                    "colours, 'pillow' keeps them"
                )
            raise BadSampleError(
                f'{path} has shape {stored.shape} and type {stored.dtype}, expected one channel of integers; {advice}'
            )
        if stored.dtype.itemsize > 2 and not 0 <= stored.min() <= stored.max() < 1 << 16:
            raise BadSampleError(f'{path} has values {stored.min()} to {stored.max()}, expected 0 to 65535')
        return stored

    def _look_up(self, table: '_Table', stored: np.ndarray) -> np.ndarray:
        """Return the labels of stored values, as uint8 if it suffices: the transforms that follow are faster on it."""
        if stored.dtype == np.uint8 and table.narrow is not None:
            return stored if table.keeps_8_bits else cv2.LUT(stored, table.narrow)
        return table.wide[stored].astype(np.uint8 if table.wide.max() < 256 else np.uint16)

    def _table(self, reduce_zero_label: bool, label_map: dict[int, int]) -> '_Table':
        """Return the label of each stored value."""
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
            self._tables[key] = _Table.of(mapped, self.ignore_index)
        return self._tables[key]

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(values={self.values}, ignore_index={self.ignore_index}, '
            f"num_classes={self.num_classes}, imdecode_backend='{self.imdecode_backend}', "
            f'max_pixels={self.max_pixels}, backend_args={self.backend_args})'
        )
