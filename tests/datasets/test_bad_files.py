"""Bad files of a dataset are errors that name them, or are skipped, before the model sees them."""

import os
import pickle
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from mmseg.registry import DATASETS, TRANSFORMS
from own_data import CLASSES, make_dataset
from PIL import Image

from mmseg_segmenter.datasets.image_files import open_image, why_truncated
from mmseg_segmenter.errors import BadSampleError, UserError

PIPELINE = [dict(type='LoadImage'), dict(type='LoadLabelMap'), dict(type='PackSegInputs')]


def png_header(width, height):
    """Return a PNG without pixels, a bomb for decoders that believe its header."""
    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    chunks = [(b'IHDR', header), (b'IDAT', zlib.compress(b'\0' * 1000)), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data)) for name, data in chunks
    )


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def become(make):
    def damage(path):
        path.unlink()
        make(path)

    return damage


def rewrite(change):
    return lambda path: cv2.imwrite(str(path), change(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)))


FILES = {
    'empty': (lambda path: path.write_bytes(b''), r'is empty \(0 bytes\)'),
    'cut': (cut, 'is incomplete|not a readable image'),
    'text': (lambda path: path.write_text('no image'), r'\(8 bytes\) is not a readable image'),
    'folder': (become(os.mkdir), 'is a folder, not a file'),
    'pipe': (become(os.mkfifo), 'is a pipe or device, not a file'),
    'missing': (os.unlink, 'not found'),
    'bomb': (lambda path: path.write_bytes(png_header(50000, 50000)), r'has 50000x50000 pixels, expected at most 268,'),
}
MASKS = {
    'RGB': (
        rewrite(lambda a: np.dstack([a] * 3)),
        r'has shape \(40, 48, 3\).*rgb2labels.*dataset\.data_prefix\.seg_map_path',
    ),
    'size': (
        rewrite(lambda a: a[:-3]),
        r'the mask has 37x48 pixels.*train_0\.jpg has 40x48.*dataset\.data_prefix, .*dataset\.seg_map_suffix',
    ),
    'label 260 in 16 bits': (rewrite(lambda a: np.where(a == 1, 260, a.astype(np.uint16))), 'found label 260, exp'),
    'label': (
        rewrite(lambda a: np.where(a == 1, 9, a).astype(np.uint8)),
        r'label 9, expected 0 to 2.*model\.decode_head\.num_classes',
    ),
}


def dataset(root, **wrapper):
    inner = dict(
        type='BaseSegDataset', data_root=str(root), metainfo=dict(classes=CLASSES), img_suffix='.jpg',
        seg_map_suffix='.png', data_prefix=dict(img_path='images/train', seg_map_path='annotations/train'),
        pipeline=PIPELINE,
    )  # fmt: skip
    return DATASETS.build(dict(wrapper, dataset=inner) if wrapper else inner)


@pytest.fixture
def root(tmp_path):
    return make_dataset(tmp_path / 'a b')


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('folder', ['images', 'annotations'])
def test_file(root, name, folder):
    damage, message = FILES[name]
    samples = dataset(root)
    path = next((root / folder / 'train').glob('train_0.*'))
    damage(path)
    with pytest.raises(BadSampleError, match=message) as raised:
        samples[0]
    assert str(raised.value).startswith(str(path))
    prefix, suffix = ('img_path', 'img_suffix') if folder == 'images' else ('seg_map_path', 'seg_map_suffix')
    assert f'see dataset.data_prefix.{prefix} and dataset.{suffix} in the config' in str(raised.value)


@pytest.mark.parametrize('name', MASKS)
def test_mask(root, name):
    damage, message = MASKS[name]
    path = root / 'annotations/train/train_0.png'
    samples = dataset(root, type='SkipBadSamples')  # sets num_classes of LoadLabelMap
    damage(path)
    with pytest.raises(BadSampleError, match=message) as raised:
        samples.dataset[0]
    assert str(raised.value).startswith(str(path))


def test_palette(tmp_path):
    """The numbers are the labels, whatever the colours; OpenCV reads only the colours."""
    labels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    image = Image.fromarray(labels, 'P')
    image.putpalette([200, 100, 50, 7, 8, 9] * 128)
    image.save(tmp_path / 'a.png')

    def load(**options):
        loader = TRANSFORMS.build(dict(type='LoadLabelMap', **options))
        return loader(dict(seg_map_path=str(tmp_path / 'a.png'), seg_fields=[]))['gt_seg_map']

    assert np.array_equal(load(), labels)
    with pytest.raises(BadSampleError, match=r"imdecode_backend='cv2' of LoadLabelMap turns .*'pillow' keeps them"):
        load(imdecode_backend='cv2')
    with pytest.raises(BadSampleError, match=r'value 2, 3, 4, 5; .*see values of LoadLabelMap in dataset\.pipeline'):
        load(values=(0, 1))


def test_sound_files_are_read_as_by_mmseg(root):
    for kinds in (('LoadImage', 'LoadImageFromFile'), ('LoadLabelMap', 'LoadAnnotations')):
        for reduce in (False, True):
            info = dict(
                img_path=str(root / 'images/train/train_0.jpg'), reduce_zero_label=reduce, seg_fields=[],
                seg_map_path=str(root / 'annotations/train/train_0.png'), label_map=None,
            )  # fmt: skip
            ours, theirs = (TRANSFORMS.build(dict(type=kind))(dict(info, seg_fields=[])) for kind in kinds)
            assert ours.keys() == theirs.keys()
            for key in ours:
                assert np.array_equal(ours[key], theirs[key])
                assert getattr(ours[key], 'dtype', None) == getattr(theirs[key], 'dtype', None)


def test_error_of_a_worker_is_one_line(root):
    (root / 'images/train/train_3.jpg').write_bytes(b'')
    loader = torch.utils.data.DataLoader(dataset(root), num_workers=1, collate_fn=list)
    with pytest.raises(BadSampleError, match=r'train_3\.jpg is empty') as raised:
        list(loader)
    assert '\n' not in str(raised.value) and str(raised.value).startswith(str(root))


@pytest.mark.parametrize('workers', [0, 2])
def test_bad_samples_are_skipped_and_listed(root, workers):
    damaged = dataset(root, type='SkipBadSamples')
    (root / 'images/train/train_1.jpg').write_bytes(b'')
    MASKS['label'][0](root / 'annotations/train/train_2.png')
    loader = torch.utils.data.DataLoader(damaged, num_workers=workers, collate_fn=list)
    names = [os.path.basename(sample['data_samples'].img_path) for (sample,) in loader]
    assert names == [f'train_{i}.jpg' for i in (0, 3, 3, 3, 4, 5)]
    image, label = damaged.bad_samples()
    assert 'train_1.jpg is empty' in image and 'train_2.png: found label 9' in label
    assert len(damaged) == 6 and damaged.metainfo['classes'] == CLASSES
    assert len(pickle.dumps(damaged.dataset)) > 0


def test_too_many_bad_samples(root):
    samples = dataset(root, type='SkipBadSamples')
    for path in (root / 'images/train').iterdir():
        path.write_bytes(b'')
    with pytest.raises(UserError, match=r'6 samples in a row are bad, the last one because .*train_\d\.jpg is empty'):
        samples[2]


def test_postscript_is_not_run(tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript; the one in this PATH leaves a trace."""
    (tmp_path / 'gs').write_text(f'#!/bin/sh\ntouch {tmp_path}/canary\n')
    (tmp_path / 'gs').chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=':')
    content = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n'
    (tmp_path / 'a.png').write_bytes(content)
    with pytest.raises(OSError, match='PostScript is not read'):
        open_image(content)
    assert why_truncated(content) == ''
    with pytest.raises(BadSampleError, match='not a readable image'):
        TRANSFORMS.build(dict(type='LoadImage', imdecode_backend='pillow'))(dict(img_path=str(tmp_path / 'a.png')))
    assert not (tmp_path / 'canary').exists()
