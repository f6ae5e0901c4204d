import cv2
import numpy as np
import pytest
from mmseg.registry import TRANSFORMS
from PIL import Image


def load(path, array, reduce_zero_label=False, label_map=None, **args):
    if isinstance(array, np.ndarray):
        assert cv2.imwrite(str(path), array)
    else:
        array.save(path)
    info = dict(seg_map_path=str(path), reduce_zero_label=reduce_zero_label, label_map=label_map, seg_fields=[])
    return TRANSFORMS.build(dict(type='LoadLabelMap', **args)).transform(info)['gt_seg_map']


def mmseg(path, **info):
    info = dict(dict(seg_map_path=str(path), reduce_zero_label=False, label_map=None, seg_fields=[]), **info)
    return TRANSFORMS.build(dict(type='LoadAnnotations')).transform(info)['gt_seg_map']


@pytest.mark.parametrize('reduce_zero_label', [False, True])
@pytest.mark.parametrize('label_map', [None, {0: 1, 1: 0, 2: 255, 3: 2}])
def test_is_mmsegs_for_8_bits(tmp_path, reduce_zero_label, label_map):
    array = np.array([[0, 1, 2], [3, 4, 255]], np.uint8)
    ours = load(tmp_path / 'm.png', array, reduce_zero_label, label_map)
    theirs = mmseg(tmp_path / 'm.png', reduce_zero_label=reduce_zero_label, label_map=label_map)
    assert (ours == theirs).all()


def test_sixteen_bits(tmp_path):
    array = np.array([[0, 1, 255, 256], [300, 65534, 65535, 2]], np.uint16)
    labels = load(tmp_path / 'm.png', array, ignore_index=65535)
    assert labels.dtype == np.uint16 and (labels == array).all()
    assert mmseg(tmp_path / 'm.png')[0, 3] == 0  # what mmseg makes of 256
    reduced = load(tmp_path / 'm.png', array, True, ignore_index=65535)
    assert reduced.tolist() == [[65535, 0, 254, 255], [299, 65533, 65535, 1]]


def test_values(tmp_path):
    array = np.array([[0, 255], [255, 0]], np.uint8)
    labels = load(tmp_path / 'm.png', array, values=(0, 255))
    assert labels.dtype == np.uint8 and labels.tolist() == [[0, 1], [1, 0]]
    array = np.array([[40, 7], [255, 1000]], np.uint16)
    assert load(tmp_path / 'm.png', array, values=(1000, 7, 40)).tolist() == [[2, 1], [255, 0]]
    assert load(tmp_path / 'm.png', array, True, values=(1000, 7, 40)).tolist() == [[1, 0], [255, 255]]


def test_one_bit_and_palette(tmp_path):
    bits = np.array([[0, 1], [1, 1]], bool)
    assert load(tmp_path / 'm.png', Image.fromarray(bits)).tolist() == [[0, 1], [1, 1]]
    palette = Image.fromarray(np.array([[0, 2]], np.uint8), mode='P')
    palette.putpalette([9, 9, 9, 8, 8, 8, 7, 7, 7])
    assert load(tmp_path / 'p.png', palette).tolist() == [[0, 2]]


@pytest.mark.parametrize(
    ('array', 'args', 'message'),
    [
        (np.array([[0, 128, 255, 3]], np.uint8), dict(values=(0, 255)), r'm\.png: found value 3, 128; expected 0, 255'),
        (np.zeros((2, 3, 3), np.uint8), {}, r'm\.png has shape \(2, 3, 3\) and type uint8, expected one channel'),
        (np.zeros((2, 2), np.uint8), dict(values=(0, 0)), r'values=\(0, 0\); expected different numbers'),
        (np.zeros((2, 2), np.uint8), dict(values=(0, 65536)), 'expected different numbers from 0 to 65535'),
        (np.zeros((2, 2), np.uint8), dict(ignore_index=-1), 'ignore_index=-1; expected 0 to 65535'),
    ],
)
def test_wrong_input(tmp_path, array, args, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path / 'm.png', array, **args)


def test_not_an_image_for_cv2(tmp_path):
    (tmp_path / 'm.png').write_text('no')
    info = dict(seg_map_path=str(tmp_path / 'm.png'), seg_fields=[])
    with pytest.raises(ValueError, match=r'm\.png \(2 bytes\) is not a readable image'):
        TRANSFORMS.build(dict(type='LoadLabelMap', imdecode_backend='cv2')).transform(info)
