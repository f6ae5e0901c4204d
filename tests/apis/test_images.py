"""Images of every kind are read as a viewer shows them, or refused by a line that says why."""

import io
import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from mmseg_segmenter.apis import read_image
from mmseg_segmenter.apis.images import as_input_image
from mmseg_segmenter.errors import MissingFileError, UserError


def gradient(height=12, width=20):
    """A picture (H, W, 3) uint8 RGB whose corners all differ."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack(
        (x * 255 // (width - 1), y * 255 // (height - 1), (x + y) * 255 // (height + width - 2)), -1
    ).astype(np.uint8)


def smooth(size=(64, 96)):
    """A picture that JPEG keeps within a few grey levels."""
    return cv2.GaussianBlur(cv2.resize(gradient(), size[::-1], interpolation=cv2.INTER_CUBIC), (0, 0), 4)


def rgb(path):
    return np.ascontiguousarray(read_image(path).rgb)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('suffix', ['jpg', 'png', 'tif', 'webp'])
def test_orientation(tmp_path, orientation, suffix):
    path, exif = tmp_path / f'a.{suffix}', Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(smooth()).save(path, exif=exif, **({'lossless': True} if suffix == 'webp' else {}))
    found = rgb(path)
    with Image.open(path) as image:
        # of Pillow alone; OpenCV's JPEG decoder differs by a level
        expected = np.asarray(ImageOps.exif_transpose(image).convert('RGB'))
    assert found.shape == expected.shape == ((64, 96, 3) if orientation < 5 else (96, 64, 3))
    assert np.abs(found.astype(int) - expected).max() <= 3
    # the brightest corner of the red channel, which rises to the right
    turns = {1: 'right', 2: 'left', 3: 'left', 4: 'right', 5: 'bottom', 6: 'bottom', 7: 'top', 8: 'top'}
    sides = {'left': found[:, 0], 'right': found[:, -1], 'top': found[0], 'bottom': found[-1]}
    assert max(sides, key=lambda side: sides[side][..., 0].mean()) == turns[orientation]


def test_plain_images_are_those_of_training(tmp_path):
    """Pixels equal mmcv.imread's, which decides what the model saw."""
    for suffix in ('jpg', 'png', 'bmp'):
        path = tmp_path / f'a.{suffix}'
        Image.fromarray(smooth()).save(path)
        assert np.array_equal(read_image(path).bgr, cv2.imread(str(path)))
        Image.fromarray(smooth()[..., 0]).save(path)
        assert np.array_equal(read_image(path).bgr, cv2.imread(str(path)))


def test_grey_with_alpha_over_white(tmp_path):
    grey, alpha = gradient()[..., 0], gradient()[..., 1]
    Image.merge('LA', (Image.fromarray(grey), Image.fromarray(alpha))).save(tmp_path / 'a.png')
    a = alpha / 255
    expected = grey * a + 255 * (1 - a)
    found = rgb(tmp_path / 'a.png')
    assert np.abs(found - expected[..., None]).max() <= 1
    assert tuple(found[0, 0]) == (255, 255, 255)


@pytest.mark.parametrize('suffix', ['png', 'webp', 'tif'])
def test_rgba_over_white(tmp_path, suffix):
    picture, alpha = gradient(), gradient()[..., 1]
    image = Image.fromarray(np.dstack((picture, alpha)))
    image.save(tmp_path / f'a.{suffix}', **({'lossless': True, 'exact': True} if suffix == 'webp' else {}))
    a = alpha[..., None] / 255
    assert np.abs(rgb(tmp_path / f'a.{suffix}') - (picture * a + 255 * (1 - a))).max() <= 1


def test_palette(tmp_path):
    labels = (gradient()[..., 0] // 32).astype(np.uint8)
    palette = np.random.default_rng(0).integers(0, 256, (8, 3), np.uint8)
    image = Image.fromarray(labels)
    image.putpalette(palette.ravel().tolist())
    image.save(tmp_path / 'a.png')
    assert np.array_equal(rgb(tmp_path / 'a.png'), palette[labels])
    image.save(tmp_path / 'b.png', transparency=0)
    assert np.array_equal(rgb(tmp_path / 'b.png'), np.where(labels[..., None] == 0, 255, palette[labels]))
    image.save(tmp_path / 'c.gif')
    assert np.array_equal(rgb(tmp_path / 'c.gif'), palette[labels])


def test_transparent_colour_of_rgb_and_grey_png(tmp_path):
    picture = np.full((4, 6, 3), 90, np.uint8)
    picture[:, :3] = (1, 2, 3)
    Image.fromarray(picture).save(tmp_path / 'a.png', transparency=(1, 2, 3))
    expected = picture.copy()
    expected[:, :3] = 255
    assert np.array_equal(rgb(tmp_path / 'a.png'), expected)
    Image.fromarray(picture[..., 0]).save(tmp_path / 'b.png', transparency=1)
    assert np.array_equal(rgb(tmp_path / 'b.png'), np.repeat(np.where(expected == 255, 255, 90)[..., :1], 3, -1))


def test_cmyk_jpeg(tmp_path):
    """Viewers show a CMYK file of the colours of an RGB one alike. Adobe's are inverted, which a marker says."""
    picture = smooth()
    cmyk = Image.fromarray(255 - np.dstack((picture, np.full(picture.shape[:2], 255, np.uint8))), 'CMYK')
    cmyk.save(tmp_path / 'a.jpg', quality=98)
    assert np.abs(rgb(tmp_path / 'a.jpg').astype(int) - picture).mean() < 2


def test_16_bit_grey(tmp_path):
    grey = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    for name in ('a.png', 'a.tif'):
        cv2.imwrite(str(tmp_path / name), grey)
        assert np.array_equal(rgb(tmp_path / name), np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, -1)), name


@pytest.mark.parametrize('suffix', ['png', 'tif'])
def test_16_bit_colour(tmp_path, suffix):
    picture = gradient().astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / f'a.{suffix}'), picture[..., ::-1])
    assert np.abs(rgb(tmp_path / f'a.{suffix}').astype(int) - gradient()).max() <= 1


def test_16_bit_colour_with_alpha(tmp_path):
    picture = np.dstack((gradient(), np.full((12, 20), 255, np.uint8)))
    picture[0, 0] = 0
    cv2.imwrite(str(tmp_path / 'a.png'), cv2.cvtColor(picture, cv2.COLOR_RGBA2BGRA).astype(np.uint16) * 257)
    found = rgb(tmp_path / 'a.png')
    assert tuple(found[0, 0]) == (255, 255, 255)
    assert np.abs(found[1:].astype(int) - gradient()[1:]).max() <= 1


def test_1_bit(tmp_path):
    bits = gradient()[..., 0] > 127
    for name in ('a.png', 'a.tif', 'a.bmp', 'a.pbm'):
        Image.fromarray(bits).save(tmp_path / name)
        assert np.array_equal(rgb(tmp_path / name), np.repeat((bits * np.uint8(255))[..., None], 3, -1)), name


def test_floating_point_tiff(tmp_path):
    """Values outside of 0 to 1 have no fixed white, so that their own extremes become black and white."""
    grey = np.linspace(-3, 5, 240, dtype=np.float32).reshape(12, 20)
    grey[0, 1:3] = np.nan, np.inf
    Image.fromarray(grey).save(tmp_path / 'a.tif')
    found = rgb(tmp_path / 'a.tif')
    assert found[0, 0, 0] == 0 and found[-1, -1, 0] == 255 and not found[0, 1:3].any()
    assert np.all(np.diff(found[1:, :, 0].ravel().astype(int)) >= 0)
    for constant in (7.0, np.nan):
        Image.fromarray(np.full((4, 4), constant, np.float32)).save(tmp_path / 'a.tif')
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            assert not rgb(tmp_path / 'a.tif').any()


def test_floating_point_tiff_from_0_to_1(tmp_path):
    Image.fromarray(np.array([[0.2, 0.4, 0.6]], np.float32)).save(tmp_path / 'a.tif')
    assert rgb(tmp_path / 'a.tif')[0, :, 0].tolist() == [51, 102, 153]


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new('RGB', (20, 12), colour) for colour in ('red', 'lime', 'blue')]
    for name in ('a.gif', 'a.webp', 'a.png', 'a.tif'):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert np.abs(rgb(tmp_path / name).astype(int) - (255, 0, 0)).max() <= 1, name


def test_interlaced_and_progressive(tmp_path):
    Image.fromarray(smooth()).save(tmp_path / 'a.jpg', progressive=True, quality=95)
    assert np.abs(rgb(tmp_path / 'a.jpg').astype(int) - smooth()).mean() < 2


@pytest.mark.parametrize('size', [(1, 1), (3, 5000), (5000, 3)])
def test_extreme_sizes(tmp_path, size):
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / 'a.png')
    assert np.array_equal(rgb(tmp_path / 'a.png'), picture)


# Refused


def cut(content):
    return content[: len(content) // 2]


def encoded(kind, **options):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ('name', 'content'),
    [
        ('cut.jpg', cut(encoded('JPEG'))),
        ('cut_progressive.jpg', cut(encoded('JPEG', progressive=True))),
        ('without_its_last_bytes.jpg', encoded('JPEG')[:-200]),
        ('cut.png', cut(encoded('PNG'))),
        ('without_its_last_bytes.png', encoded('PNG')[:-200]),
        ('cut.bmp', cut(encoded('BMP'))),
        ('cut.tif', cut(encoded('TIFF'))),
        ('cut.webp', cut(encoded('WEBP'))),
        ('cut.gif', cut(encoded('GIF'))),
        ('text.png', b'This is no image.\n'),
        ('empty.png', b''),
        ('header_only.png', encoded('PNG')[:33]),
        ('html.jpg', b'<!DOCTYPE html><html></html>'),
    ],
)
def test_damaged(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=r'is not (a readable image|an image of a known format)') as error:
        read_image(path)
    assert str(path) in str(error.value) and '\n' not in str(error.value)


def test_damaged_inside(tmp_path):
    """A PNG whose compressed data does not fit its checksum."""
    content = bytearray(encoded('PNG'))
    content[len(content) // 2] ^= 0xFF
    (tmp_path / 'a.png').write_bytes(content)
    with pytest.raises(UserError, match='is not a readable image'):
        read_image(tmp_path / 'a.png')


def bomb(side):
    """A PNG of a few kilobytes that says it has side * side pixels."""

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(100_000))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', data) + chunk(b'IEND', b'')


def test_too_many_pixels(tmp_path):
    (tmp_path / 'a.png').write_bytes(bomb(50_000))
    with pytest.raises(UserError, match=r'50000x50000 pixels, expected at most 268,435,456 \(max_pixels\)'):
        read_image(tmp_path / 'a.png')
    Image.fromarray(gradient()).save(tmp_path / 'b.png')
    with pytest.raises(UserError, match='20x12 pixels, expected at most 239'):
        read_image(tmp_path / 'b.png', max_pixels=239)
    assert read_image(tmp_path / 'b.png', max_pixels=240).bgr.shape == (12, 20, 3)


def test_more_pixels_than_pillow_likes(tmp_path, monkeypatch):
    """Its limit is for all images of a program; it does not apply here, and is as before afterwards."""
    Image.fromarray(gradient()).save(tmp_path / 'a.tif')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10)
    assert read_image(tmp_path / 'a.tif').bgr.shape == (12, 20, 3)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(MissingFileError, match=r'nothing\.png not found'):
        read_image(tmp_path / 'nothing.png')
    with pytest.raises(UserError, match='is not a regular file'):
        read_image(tmp_path)


# From memory


def test_arrays():
    picture = gradient()
    assert np.array_equal(as_input_image(picture, 'rgb').rgb, picture)
    assert np.array_equal(as_input_image(picture[..., ::-1]).rgb, picture)
    grey = picture[..., 0]
    for array in (grey, grey[..., None]):
        assert np.array_equal(as_input_image(array).bgr, np.repeat(grey[..., None], 3, -1))
    assert np.array_equal(as_input_image(Image.fromarray(picture)).rgb, picture)
    picture.flags.writeable = False  # torch warns about such arrays
    image = as_input_image(picture[..., ::-1].copy()[..., ::-1], 'rgb')
    assert as_input_image(picture).bgr.flags.writeable
    assert as_input_image(image) is image


@pytest.mark.parametrize(
    'array', [gradient() / 255, gradient().astype(np.uint16), gradient()[..., :2], gradient()[None]]
)
def test_arrays_that_are_no_images(array):
    with pytest.raises(UserError, match=r'array of shape .* expected'):
        as_input_image(array)


def test_other_values():
    with pytest.raises(UserError, match='no pixels'):
        as_input_image(np.zeros((0, 4, 3), np.uint8))
    with pytest.raises(UserError, match="channel_order='gbr'"):
        as_input_image(gradient(), 'gbr')
    with pytest.raises(TypeError, match='image of type int'):
        as_input_image(3)
