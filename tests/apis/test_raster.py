"""Rasters: labels are those of the image in memory, and georeference, masks and no-data are kept."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image
from tiny_run import PALETTE

from mmseg_segmenter.apis import Predictor
from mmseg_segmenter.apis import raster as raster_module
from mmseg_segmenter.apis.inputs import find_tasks
from mmseg_segmenter.apis.outputs import OutputSpec
from mmseg_segmenter.apis.pipeline import Pipeline
from mmseg_segmenter.apis.raster import segment_raster
from mmseg_segmenter.errors import MissingFileError, MissingPackageError, UserError

rasterio = pytest.importorskip('rasterio')
from rasterio.control import GroundControlPoint  # noqa: E402
from rasterio.enums import ColorInterp  # noqa: E402
from rasterio.rpc import RPC  # noqa: E402

CRS = rasterio.CRS.from_epsg(32633)
TRANSFORM = rasterio.Affine(0.5, 0.1, 412_345.25, 0.1, -0.5, 5_401_234.75)


def pixels(size=(150, 110), bands=3, dtype=np.uint8, seed=0):
    """Large random blobs, (bands, H, W)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (bands, size[0] // 9 + 1, size[1] // 7 + 1), np.uint8)
    return coarse.repeat(9, 1).repeat(7, 2)[:, : size[0], : size[1]].astype(dtype)


def write(path, values, **profile):
    """Write a raster with values (bands, H, W)."""
    count, height, width = values.shape
    options = dict(driver='GTiff', crs=CRS, transform=TRANSFORM, dtype=values.dtype, count=count)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, 'w', height=height, width=width, **{**options, **profile}) as file:
            file.write(values)
    return str(path)


@pytest.fixture(scope='module')
def predictor(run_folder):
    return Predictor(run_folder, device='cpu')


@pytest.fixture
def segment(predictor, tmp_path):
    """Return a function that segments a raster and returns the labels, and the file's properties."""

    def run(source, model=predictor, **options):
        out = tmp_path / 'out' / 'labels.tif'
        found = segment_raster(model, str(source), str(out), **options)
        with rasterio.open(out) as file:
            labels = file.read(1)
            assert (found.height, found.width) == labels.shape
            valid = labels[labels != file.nodata]
            assert found.pixels.tolist() == np.bincount(valid, minlength=len(model.classes)).tolist()
            assert found.nodata_pixels == labels.size - valid.size
            return labels, file

    return run


def in_memory(predictor, values):
    """Labels of the image (3 bands: RGB) in memory."""
    return predictor.predict(values.transpose(1, 2, 0), channel_order='rgb').labels


@pytest.mark.parametrize('size', [(150, 110), (32, 33), (97, 300)])
def test_labels_are_those_in_memory(segment, predictor, tmp_path, size):
    values = pixels(size)
    labels, _ = segment(write(tmp_path / 'a.tif', values))
    assert np.array_equal(labels, in_memory(predictor, values)) and len(np.unique(labels)) > 1
    layout = dict(tiled=True, blockxsize=64, blockysize=32, compress='lzw', interleave='band')
    assert np.array_equal(segment(write(tmp_path / 'b.tif', values, **layout))[0], labels)


def test_georeference_colours_and_layout(segment, tmp_path):
    labels, file = segment(write(tmp_path / 'a.tif', pixels((600, 1100))))
    assert file.crs == CRS and file.transform == TRANSFORM
    with rasterio.open(tmp_path / 'out' / 'labels.tif') as file:
        assert file.profile['tiled'] and file.profile['compress'] == 'deflate' and file.block_shapes == [(512, 512)]
        assert (file.dtypes, file.nodata, file.count) == (('uint8',), 255, 1)
        assert file.colorinterp == (ColorInterp.palette,)
        assert [list(file.colormap(1)[i][:3]) for i in range(5)] == PALETTE
        assert file.tags(1)['class_3'] == 'car'
        assert file.overviews(1) == [2, 4]
        small = file.read(1, out_shape=(300, 550))
        assert np.mean(small == labels[::2, ::2]) > 0.9 and set(np.unique(small)) <= set(np.unique(labels))


def test_ground_control_points_and_rpcs(segment, tmp_path):
    path = write(tmp_path / 'a.tif', pixels(), crs=None, transform=None)
    points = [GroundControlPoint(r, c, 10.0 + c, 50.0 - r) for r, c in ((0, 0), (0, 110), (150, 0), (150, 110))]
    rpc = RPC(0.0, 1.0, 50.0, 1.0, [0.1] * 20, [0.2] * 20, 75.0, 75.0, 10.0, 1.0, [0.3] * 20, [0.4] * 20, 55.0, 55.0)
    with rasterio.open(path, 'r+') as file:
        file.gcps = points, rasterio.CRS.from_epsg(4326)
    segment(path)
    with rasterio.open(tmp_path / 'out' / 'labels.tif') as file:
        found, crs = file.gcps
        assert crs == rasterio.CRS.from_epsg(4326)
        assert [(p.row, p.col, p.x, p.y) for p in found] == [(p.row, p.col, p.x, p.y) for p in points]
    path = write(tmp_path / 'b.tif', pixels(), crs=None, transform=None)
    with rasterio.open(path, 'r+') as file:
        file.rpcs = rpc
    segment(path)
    with rasterio.open(tmp_path / 'out' / 'labels.tif') as file:
        assert rpc.to_gdal().items() <= file.rpcs.to_gdal().items()


@pytest.mark.parametrize('kind', ['nodata', 'alpha', 'mask'])
def test_pixels_without_data(segment, predictor, tmp_path, kind):
    values = pixels((200, 160)) // 2 + 10
    empty = np.zeros((200, 160), bool)
    empty[:90, :75] = empty[-1] = True  # whole windows, and single rows
    path = tmp_path / 'a.tif'
    if kind == 'nodata':
        write(path, np.where(empty, np.uint8(3), values), nodata=3)
    elif kind == 'alpha':
        alpha = np.where(empty, np.uint8(0), np.uint8(255))
        write(path, np.concatenate((values, alpha[None])), photometric='rgb', alpha='yes')
    else:
        write(path, values)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, 'r+') as file:
            file.write_mask(~empty)
    labels, file = segment(path)
    assert file.nodata == 255 and np.array_equal(labels == 255, empty)
    wanted = in_memory(predictor, np.where(empty, np.uint8(0), values))
    assert np.array_equal(labels[~empty], wanted[~empty])


def test_raster_without_any_data(segment, tmp_path):
    labels, _ = segment(write(tmp_path / 'a.tif', np.zeros((3, 70, 80), np.uint8), nodata=0))
    assert (labels == 255).all()


def test_choice_of_bands(segment, predictor, tmp_path):
    values = pixels(bands=5)
    path = write(tmp_path / 'a.tif', values)
    for bands in ((5, 1, 3), (2, 2, 4), (4,)):
        chosen = values[[band - 1 for band in (bands * 3)[:3]]]
        assert np.array_equal(segment(path, bands=bands)[0], in_memory(predictor, chosen))
    for bands in ((1, 2), (0, 1, 2), (1, 2, 6)):
        with pytest.raises(UserError, match=r'a\.tif: bands=\(.*\); expected 1 or 3 numbers from 1 to 5'):
            segment(path, bands=bands)


def test_one_band(segment, predictor, tmp_path):
    values = pixels(bands=1)
    labels, _ = segment(write(tmp_path / 'a.tif', values))
    assert np.array_equal(labels, in_memory(predictor, values.repeat(3, 0)))


def test_colour_table(segment, predictor, tmp_path):
    values = pixels(bands=1) // 32
    colours = np.random.default_rng(0).integers(0, 256, (8, 3), np.uint8)
    path = write(tmp_path / 'a.tif', values, photometric='palette')
    with rasterio.open(path, 'r+') as file:
        file.write_colormap(1, {i: (*map(int, colour), 255) for i, colour in enumerate(colours)})
    labels, _ = segment(path)
    assert np.array_equal(labels, in_memory(predictor, colours[values[0]].transpose(2, 0, 1)))


@pytest.mark.parametrize('dtype', [np.uint16, np.int16, np.float32])
def test_value_range(segment, predictor, tmp_path, dtype):
    values = pixels().astype(dtype) * 10 - (500 if dtype != np.uint16 else 0)
    if dtype == np.float32:
        values[:, 5, 5], values[:, 6, 6], values[:, 7, 7] = np.nan, np.inf, -np.inf
    path = write(tmp_path / 'a.tif', values)
    with pytest.raises(UserError, match=rf'a\.tif: bands of type {np.dtype(dtype)}; set value_range'):
        segment(path)
    low, high = 100, 1700
    scaled = ((values.astype(np.float64) - low) / (high - low) * 255).clip(0, 255)
    wanted = in_memory(predictor, np.nan_to_num(scaled).round().astype(np.uint8))
    assert np.mean(segment(path, value_range=(low, high))[0] == wanted) > 0.999  # halves round either way
    with pytest.raises(UserError, match=r'value_range=\(5, 5\); expected two rising numbers'):
        segment(path, value_range=(5, 5))


def test_many_classes(make_run, segment, tmp_path):
    for count, dtype, nodata in ((255, 'uint8', 255), (256, 'uint16', 65535), (300, 'uint16', 65535)):
        meta = dict(classes=[str(i) for i in range(count)], palette=[[i % 256, i // 256, 0] for i in range(count)])
        model = Predictor(make_run(str(count), meta, num_classes=count), device='cpu')
        values = pixels()
        labels, file = segment(write(tmp_path / 'a.tif', values), model)
        assert (file.dtypes[0], file.nodata) == (dtype, nodata)
        assert np.array_equal(labels, in_memory(model, values))


RESIZE = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 32), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]


def test_the_resolution_is_that_of_the_raster(make_run, predictor, segment, tmp_path):
    """Whatever the pipeline of the config does to images, also where a raster is segmented at once."""
    resizing = Predictor(make_run(test_dataloader__dataset__pipeline=RESIZE, test_pipeline=RESIZE), device='cpu')
    for size in ((150, 110), (20, 50)):
        values = pixels(size)
        labels, _ = segment(write(tmp_path / 'a.tif', values), resizing)
        assert np.array_equal(labels, in_memory(predictor, values))
        assert not np.array_equal(labels, in_memory(resizing, values))


def test_smaller_than_a_window(predictor, segment, tmp_path):
    for size in ((20, 30), (31, 200), (200, 31), (1, 1)):
        values = pixels(size)
        labels, file = segment(write(tmp_path / 'a.tif', values))
        assert np.array_equal(labels, in_memory(predictor, values)) and file.crs == CRS


FCN = dict(
    _delete_=True, type='FCNHead', in_channels=16, channels=8, num_convs=1, num_classes=5, norm_cfg=dict(type='BN')
)


@pytest.mark.parametrize('changes', [dict(mode='whole'), dict(mode='whole', model__decode_head=FCN)])
def test_models_without_windows(make_run, segment, tmp_path, changes, monkeypatch):
    model = Predictor(make_run(**changes), device='cpu')
    values = pixels()
    path = write(tmp_path / 'a.tif', values)
    assert np.array_equal(segment(path, model)[0], in_memory(model, values))
    monkeypatch.setattr(raster_module, 'RASTER_PIXELS', 1000)
    with pytest.raises(UserError, match=r"a\.tif: 150x110 pixels; for more than 1,000 .*test_cfg\.mode='slide'"):
        segment(path, model)


@pytest.mark.parametrize('name', ['a.png', 'a.jpg', 'a.tif', 'a.bmp'])
def test_plain_images(segment, predictor, tmp_path, name):
    """Without a coordinate system; as far as GDAL reads the format."""
    image = pixels().transpose(1, 2, 0)
    Image.fromarray(image).save(tmp_path / name, quality=95, subsampling=0)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        labels, file = segment(tmp_path / name)
    assert file.crs is None
    wanted = predictor.predict(tmp_path / name).labels
    assert np.mean(labels == wanted) > (0.99 if name == 'a.jpg' else 1 - 1e-9)  # decoders of JPEG differ


# Errors


def test_what_is_no_raster(segment, tmp_path, make_run):
    (tmp_path / 'text.tif').write_text('text')
    with pytest.raises(UserError, match=r'text\.tif is not a readable raster'):
        segment(tmp_path / 'text.tif')
    with pytest.raises(MissingFileError, match=r'none\.tif not found'):
        segment(tmp_path / 'none.tif')
    with pytest.raises(UserError, match=r'a\.tif: rasters are segmented without test-time augmentation'):
        segment(write(tmp_path / 'a.tif', pixels()), Predictor(make_run(), device='cpu', tta=True))
    assert not list((tmp_path / 'out').rglob('*')) if (tmp_path / 'out').exists() else True


def test_damaged_raster(segment, tmp_path):
    """Nothing half-written is left."""
    path = write(tmp_path / 'a.tif', pixels((400, 300)), tiled=True, blockxsize=64, blockysize=64, compress='deflate')
    content = bytearray((tmp_path / 'a.tif').read_bytes())
    with rasterio.open(path) as file:
        offset = int(file.tags(1, 'TIFF').get('BLOCK_OFFSET_2_4') or file.get_tag_item('BLOCK_OFFSET_2_4', 'TIFF', 1))
    content[offset : offset + 400] = bytes(400)
    (tmp_path / 'a.tif').write_bytes(content)
    with pytest.raises(UserError, match=r'a\.tif: cannot read rows \d+ to \d+: a\.tif, band 1: IReadBlock failed'):
        segment(path)
    assert not list((tmp_path / 'out').rglob('*'))


def test_without_rasterio(segment, tmp_path, monkeypatch):
    path = write(tmp_path / 'a.tif', pixels())
    monkeypatch.setitem(sys.modules, 'rasterio', None)
    with pytest.raises(MissingPackageError, match=r"pip install 'mmseg_segmenter\[raster\]' or pip install rasterio"):
        segment(path)


# In the pipeline


def test_pipeline(predictor, tmp_path):
    """A GeoTIFF is a raster, a plain TIFF an image. Results may be at a URI."""
    import fsspec

    folder = tmp_path / 'in'
    folder.mkdir()
    values = pixels()
    write(folder / 'geo.tif', values)
    Image.fromarray(values.transpose(1, 2, 0)).save(folder / 'plain.tif')
    outputs = OutputSpec('memory://out', ('labels',))
    try:
        results = {result.name: result for result in Pipeline(predictor, outputs).run(find_tasks([str(folder)]))}
        assert {name: (r.kind, r.status) for name, r in results.items()} == {
            'geo': ('raster', 'done'),
            'plain': ('image', 'done'),
        }
        assert results['geo'].files == ('labels/geo.tif',) and results['geo'].pixels == results['plain'].pixels
        with fsspec.open('memory://out/labels/geo.tif') as file, rasterio.open(file) as raster:
            assert np.array_equal(raster.read(1), in_memory(predictor, values)) and raster.crs == CRS
    finally:
        fsspec.filesystem('memory').rm('/', recursive=True)


MEASURE = """
import sys
from mmseg_segmenter.apis import Predictor
from mmseg_segmenter.apis.raster import segment_raster
import resource
predictor = Predictor(sys.argv[1], device='cpu')
for path in sys.argv[2:]:
    segment_raster(predictor, path, path + '.out.tif')
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_does_not_grow_with_the_height(make_run, tmp_path):
    """Of a raster of 131 megapixels, which alone would take 393 MB."""
    run = make_run(model__test_cfg__crop_size=(256, 256), model__test_cfg__stride=(256, 256),
                   model__backbone__patch_size=32, model__test_cfg__window_batch_size=16)  # fmt: skip
    layout = dict(tiled=True, blockxsize=256, blockysize=256, compress='deflate', bigtiff='yes', nodata=0)
    for name, height in (('low', 2048), ('high', 64_000)):
        with rasterio.open(tmp_path / f'{name}.tif', 'w', driver='GTiff', dtype='uint8', count=3, width=2048,
                           height=height, crs=CRS, transform=TRANSFORM, sparse_ok=True, **layout) as file:  # fmt: skip
            values = pixels((256, 2048))
            for top in (0, height - 256):
                file.write(values, window=rasterio.windows.Window(0, top, 2048, 256))
    command = [sys.executable, '-c', MEASURE, str(run), str(tmp_path / 'low.tif'), str(tmp_path / 'high.tif')]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    low, high = map(int, done.stdout.split()[-2:])
    assert high - low < 100, (low, high)
