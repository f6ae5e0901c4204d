"""Segment rasters of any size: GeoTIFF and what else GDAL reads."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from mmseg.datasets.transforms import PackSegInputs

from ..errors import MissingFileError, MissingPackageError, UserError
from ..models.segmentors import Segmenter
from .images import InputImage
from .inputs import RASTER_PIXELS
from .predictor import Predictor, Prepared
from .storage import is_uri, write_file
from .strips import Strip, segment_strips

_BLOCK = 512  # side of the tiles of the output, in pixels
_GDAL = dict(
    GDAL_CACHEMAX=64 << 20,  # bytes; the default is 5 % of the machine's memory
    GDAL_ALLOW_LARGE_LIBJPEG_MEM_ALLOC=True,  # progressive JPEG is decoded as a whole, in about 4 bytes per pixel,
    JPEGMEM='8000M',  # for which libjpeg's default is 500 MB
)


class RasterResult(NamedTuple):
    """What :func:`segment_raster` wrote.

    Attributes:
        height: rows of the raster.
        width: columns of the raster.
        pixels: number of pixels of each class, by label.
        nodata_pixels: number of pixels without data.
    """

    height: int
    width: int
    pixels: np.ndarray
    nodata_pixels: int


def segment_raster(
    predictor: Predictor,
    source: str,
    destination: str,
    bands: Sequence[int] | None = None,
    value_range: tuple[float, float] | None = None,
    progress: Callable[[float], None] | None = None,
) -> RasterResult:
    """Segment a raster and write its labels as a tiled, compressed GeoTIFF.

    The raster is read and written by strips: memory depends on its width, not
    on its height. It is segmented at its own resolution; the test pipeline of
    the config, which may resize images, is not applied. Coordinate system,
    transform, ground control points and RPCs are kept. The result has the
    palette of the classes as its colour table, and overviews. Pixels without
    data (by the raster's mask, alpha band or no-data value) get the no-data
    value of the result: 255, or 65535 from 256 classes on.

    Rasters smaller than a window, and those for models without sliding
    windows, are segmented in memory, up to ``RASTER_PIXELS`` pixels.

    Args:
        predictor: without test-time augmentation.
        source: path or GDAL name of the raster.
        destination: ``.tif`` file to write, local or a URI.
        bands: red, green and blue, counted from 1. Default: the first three,
            or the only one, through its colour table if it has one.
        value_range: values that become 0 and 255. Required unless the raster
            has 8 bits.
        progress: called with the share that is done, 0 to 1.

    Raises:
        MissingFileError: no such raster.
        MissingPackageError: rasterio is not installed.
        UserError: the raster is not readable, or an argument does not fit it.
    """
    rasterio = import_rasterio()
    if predictor.tta:
        raise UserError(f'{source}: rasters are segmented without test-time augmentation; leave out tta')
    with contextlib.ExitStack() as stack:
        stack.enter_context(rasterio.Env(**_GDAL))
        raster = stack.enter_context(_open(rasterio, source))
        reader = _Reader(raster, source, bands, value_range, predictor)
        results: list[RasterResult] = []
        write_file(destination, lambda path: results.append(_write(rasterio, predictor, reader, path, progress)))
    return results[0]


def import_rasterio() -> Any:
    """Return the module rasterio.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import rasterio
    except ImportError:
        raise MissingPackageError(
            "rasters need rasterio: run pip install 'mmseg_segmenter[raster]' or pip install rasterio"
        ) from None
    return rasterio


@contextlib.contextmanager
def _open(rasterio: Any, source: str) -> Iterator[Any]:
    source = source if is_uri(source) else os.path.expanduser(source)
    warnings.simplefilter('ignore', rasterio.errors.NotGeoreferencedWarning)  # plain images are rasters too
    try:
        raster = rasterio.open(source)
    except rasterio.errors.RasterioIOError as error:
        if '://' not in source and not os.path.exists(source):
            raise MissingFileError(f'raster {source} not found (working directory: {os.getcwd()})') from None
        raise UserError(f'{source} is not a readable raster: {error}') from None
    with raster:
        yield raster


class _Reader:
    """Rows of a raster as 8-bit colour, in the channel order of the model's input."""

    def __init__(
        self,
        raster: Any,
        source: str,
        bands: Sequence[int] | None,
        value_range: tuple[float, float] | None,
        predictor: Predictor,
    ) -> None:
        palette = _palette(raster) if bands is None and raster.count == 1 else None
        if bands is None:
            bands = (1, 2, 3) if raster.count >= 3 else (1,)
        if len(bands) not in (1, 3) or not all(1 <= band <= raster.count for band in bands):
            raise UserError(f'{source}: bands={tuple(bands)}; expected 1 or 3 numbers from 1 to {raster.count}')
        dtypes = {raster.dtypes[band - 1] for band in bands}
        if value_range is None and dtypes != {'uint8'}:
            raise UserError(
                f'{source}: bands of type {", ".join(sorted(dtypes))}; set value_range to the values that are to '
                'become black and white'
            )
        if value_range is not None and not value_range[0] < value_range[1]:
            raise UserError(f'value_range={value_range}; expected two rising numbers')
        self.raster, self.source, self.value_range = raster, source, value_range
        self._palette = palette
        # OpenMMLab's preprocessors expect BGR.
        self.bands = list(bands)[::-1] if len(bands) == 3 else list(bands) * 3
        self.size = (raster.height, raster.width)
        self._rows = np.empty((0, raster.width, 4), np.uint8)
        self._top = 0

    def read(self, top: int, bottom: int) -> np.ndarray:
        """Return rows ``[top, bottom)`` as (rows, W, 4) uint8: BGR and validity. Rows above are forgotten."""
        done = self._top + len(self._rows)
        if bottom > done:
            self._rows = np.concatenate((self._rows[top - self._top :], self._read(done, bottom)))
            self._top = top
        return self._rows[top - self._top : bottom - self._top]

    def valid(self, top: int, bottom: int) -> np.ndarray:
        """Return which pixels of rows ``[top, bottom)``, read before, have data."""
        return self._rows[top - self._top : bottom - self._top, :, 3] > 0

    def _read(self, top: int, bottom: int) -> np.ndarray:
        from rasterio.errors import RasterioIOError
        from rasterio.windows import Window

        window = Window(0, top, self.raster.width, bottom - top)
        try:
            pixels = self.raster.read(sorted(set(self.bands)), window=window)  # (bands, rows, W)
            mask = self.raster.dataset_mask(window=window)  # (rows, W)
        except RasterioIOError as error:
            raise UserError(f'{self.source}: cannot read rows {top} to {bottom}: {error.__cause__ or error}') from None
        order = {band: i for i, band in enumerate(sorted(set(self.bands)))}
        pixels = pixels[[order[band] for band in self.bands]].transpose(1, 2, 0)
        if self._palette is not None:
            pixels = self._palette[pixels[..., 0]]
        if self.value_range is not None:
            low, high = self.value_range
            scaled = (pixels.astype(np.float32) - low) * (255 / (high - low))
            pixels = np.nan_to_num(scaled).clip(0, 255).round().astype(np.uint8)
        # What lies under no-data must not depend on the value that marks it.
        return np.dstack((np.where(mask[..., None] > 0, pixels, np.uint8(0)), mask))


def _palette(raster: Any) -> np.ndarray | None:
    """Return the colour table of a raster's first band as (256, 3) BGR; None without one."""
    from rasterio.enums import ColorInterp

    if raster.colorinterp[0] != ColorInterp.palette or raster.dtypes[0] != 'uint8':
        return None
    table = np.zeros((256, 3), np.uint8)
    for value, colour in raster.colormap(1).items():
        table[value] = colour[2::-1]  # of RGBA
    return table


def _strips(predictor: Predictor, reader: _Reader) -> Iterator[Strip]:
    """Segment a raster strip by strip, or a small one at once where the model has no windows that fit into it."""
    model, (H, W) = predictor.model, reader.size
    if isinstance(model, Segmenter) and model.test_cfg.mode == 'slide':
        window = model.test_cfg.crop_size
        if window[0] <= H and window[1] <= W:
            return segment_strips(model, (H, W), reader.read, predictor.autocast)
    if H * W > RASTER_PIXELS:
        raise UserError(
            f'{reader.source}: {H}x{W} pixels; for more than {RASTER_PIXELS:,} the model must be a Segmenter with '
            "test_cfg.mode='slide' and windows that fit into the raster"
        )
    bgr = np.ascontiguousarray(reader.read(0, H)[..., :3])
    sample = PackSegInputs()(dict(img=bgr, img_path=reader.source, img_shape=(H, W), ori_shape=(H, W)))
    (prediction,) = predictor.segment([Prepared(InputImage(bgr, reader.source), sample, (3, H, W))])
    return iter([Strip(0, prediction.labels)])


def _write(
    rasterio: Any, predictor: Predictor, reader: _Reader, path: str, progress: Callable[[float], None] | None
) -> RasterResult:
    raster, num_classes = reader.raster, len(predictor.classes)
    H, W = reader.size
    dtype, nodata = (np.uint8, 255) if num_classes <= 255 else (np.uint16, 65535)
    profile = dict(
        driver='GTiff',
        dtype=np.dtype(dtype).name,
        count=1,
        height=H,
        width=W,
        nodata=nodata,
        tiled=True,
        blockxsize=_BLOCK,
        blockysize=_BLOCK,
        compress='deflate',
        predictor=1,
        bigtiff='if_safer',
    )
    if raster.crs is not None or raster.transform != rasterio.Affine.identity():
        profile.update(crs=raster.crs, transform=raster.transform)
    pixels, empty = np.zeros(num_classes, np.int64), 0
    with rasterio.open(path, 'w', **profile) as out:
        gcps, gcps_crs = raster.gcps
        if gcps:
            out.gcps = gcps, gcps_crs
        if raster.rpcs is not None:
            out.rpcs = raster.rpcs
        if dtype is np.uint8:
            out.write_colormap(1, {i: (*map(int, colour), 255) for i, colour in enumerate(predictor.classes.palette)})
        out.update_tags(1, **{f'class_{i}': name for i, name in enumerate(predictor.classes.names)})
        pending, top = np.empty((0, W), dtype), 0
        for strip in _strips(predictor, reader):
            bottom = strip.top + len(strip.labels)
            valid = reader.valid(strip.top, bottom)
            labels = np.where(valid, strip.labels, nodata).astype(dtype)
            pixels += np.bincount(labels[valid], minlength=num_classes)
            empty += int(np.count_nonzero(~valid))
            pending = np.concatenate((pending, labels))
            # Whole rows of tiles, as a tile that is written twice is stored twice.
            whole = len(pending) if bottom == H else len(pending) // _BLOCK * _BLOCK
            if whole:
                out.write(pending[:whole], 1, window=rasterio.windows.Window(0, top, W, whole))
                pending, top = pending[whole:], top + whole
            if progress is not None:
                progress(bottom / H)
        levels = [2**i for i in range(1, 16) if max(H, W) >> i >= _BLOCK // 2]
        if levels:
            out.build_overviews(levels, rasterio.enums.Resampling.nearest)
    return RasterResult(H, W, pixels, empty)
