import re
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mmseg_segmenter.datasets.colours import count_colours, read_palette, to_labels

TOOL = Path(__file__).parents[2] / 'tools' / 'dataset_converters' / 'rgb2labels.py'
PALETTE = '# R G B\n0 0 0 background\n128,0,0 car  # comment\n\n255 255 255 ignore\n0 0 128 0 sky, too\n0 128 0 tree\n'
COLOURS = np.array([[0, 0, 0], [128, 0, 0], [255, 255, 255], [0, 0, 128], [0, 128, 0]], np.uint8)
LABELS = np.array([0, 1, 255, 0, 2], np.uint8)


@pytest.fixture
def palette(tmp_path):
    path = tmp_path / 'palette.txt'
    path.write_text(PALETTE)
    return path


@pytest.fixture
def masks(tmp_path):
    """Three masks, one of them in a subfolder, and the indices of their colours."""
    rng = np.random.default_rng(0)
    (tmp_path / 'masks/b').mkdir(parents=True)
    indices = {}
    for name in ('gt_1', 'gt_2', 'b/gt_3'):
        indices[name] = rng.integers(0, 5, (6, 8))
        Image.fromarray(COLOURS[indices[name]]).save(tmp_path / f'masks/{name}.png')
    return tmp_path / 'masks', indices


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['rgb2labels.py', *map(str, args)])
    runpy.run_path(str(TOOL), run_name='__main__')


def test_palette(palette):
    assert read_palette(str(palette)) == dict(
        zip([tuple(colour) for colour in COLOURS.tolist()], LABELS.tolist(), strict=True)
    )


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('0 0 car', r"line 1: '0 0 car'; expected R G B"),
        ('0 0 0\n0 0 256 x', r"line 2: '0 0 256 x'; expected R G B .* each 0 to 255"),
        ('1 2 3 a\n1 2 3 b', r'line 2: colour \(1, 2, 3\) occurs twice'),
        ('# nothing', 'no colours'),
    ],
)
def test_wrong_palette(tmp_path, text, message):
    (tmp_path / 'p.txt').write_text(text)
    with pytest.raises(ValueError, match=message):
        read_palette(str(tmp_path / 'p.txt'))


def test_convert(masks, palette, tmp_path, monkeypatch, capsys):
    folder, indices = masks
    run(monkeypatch, folder, tmp_path / 'out', '--palette', palette, '--rename', '^gt_', 'image_')
    assert 'wrote 3 label maps with labels 0, 1, 2, 255' in capsys.readouterr().out
    names = sorted(p.relative_to(tmp_path / 'out').as_posix() for p in (tmp_path / 'out').rglob('*.png'))
    assert names == ['b/image_3.png', 'image_1.png', 'image_2.png']
    for name, index in indices.items():
        with Image.open(tmp_path / 'out' / f'{name.replace("gt_", "image_")}.png') as image:
            assert image.mode == 'L' and (np.asarray(image) == LABELS[index]).all()


def test_list_is_a_palette(masks, tmp_path, monkeypatch, capsys):
    folder, indices = masks
    run(monkeypatch, folder)
    text = capsys.readouterr().out
    (tmp_path / 'listed.txt').write_text(text)
    assert set(read_palette(str(tmp_path / 'listed.txt'))) == {tuple(colour) for colour in COLOURS.tolist()}
    count = sum(int((index == 1).sum()) for index in indices.values())
    assert re.search(rf'^128   0   0  # {count} pixels in 3 masks$', text, re.M)
    assert [pixels for _, pixels, _ in count_colours(str(folder))] == sorted(
        (pixels for _, pixels, _ in count_colours(str(folder))), reverse=True
    )


def test_unknown_colour_writes_nothing(masks, palette, tmp_path, monkeypatch):
    folder, _ = masks
    image = np.zeros((6, 8, 3), np.uint8)
    image[2, 3:5] = 0, 0, 100
    Image.fromarray(image).save(folder / 'gt_9.png')
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, folder, tmp_path / 'out', '--palette', palette)
    assert stop.value.code == (
        f'rgb2labels.py: {folder}/gt_9.png: colour (0, 0, 100) is not in the palette (2 pixels, the first at row 2, '
        'column 3; nearest (0, 0, 128))'
    )
    assert [p for p in (tmp_path / 'out').rglob('*') if p.is_file()] == []


def test_tolerance(palette):
    known = read_palette(str(palette))
    image = np.array([[[10, 0, 3], [120, 4, 0], [0, 70, 60]]], np.uint8)
    assert to_labels(image, known, 70).tolist() == [[0, 1, 2]]
    with pytest.raises(ValueError, match=r'colour \(0, 70, 60\) is not'):
        to_labels(image, known, 10)


def test_grey_masks(tmp_path, monkeypatch):
    """A binary mask saved as JPEG: grey levels around 0 and 255."""
    (tmp_path / 'masks').mkdir()
    mask = np.zeros((32, 32), np.uint8)
    cv2.circle(mask, (16, 16), 9, 255, -1, cv2.LINE_AA)
    cv2.imwrite(str(tmp_path / 'masks/a.jpg'), mask)
    (tmp_path / 'p.txt').write_text('0 0 0 background\n255 255 255 object\n')
    run(monkeypatch, tmp_path / 'masks', tmp_path / 'out', '--palette', tmp_path / 'p.txt', '--tolerance', 127)
    labels = cv2.imread(str(tmp_path / 'out/a.png'), cv2.IMREAD_UNCHANGED)
    assert set(np.unique(labels)) == {0, 1} and abs(int(labels.sum()) - int((mask > 127).sum())) < 12


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('nowhere', 'out', '--palette', 'palette.txt'), 'folder nowhere not found'),
        (('.', 'out', '--palette', 'palette.txt'), 'no masks, expected files that end in .png'),
        (('masks', 'out', '--palette', 'no.txt'), 'palette no.txt not found'),
        (('masks', 'out', '--palette', 'palette.txt', '--tolerance', '-1'), 'tolerance=-1; expected 0 to 255'),
        (('masks', 'out', '--palette', 'palette.txt', '--rename', '(', ''), "rename '(' to '': "),
        (('masks', 'out', '--palette', 'palette.txt', '--rename', r'\d', ''), 'would both become gt_.png'),
        (('masks', 'out', '--palette', 'palette.txt', '--rename', 'gt_', '../'), 'expected a name without folders'),
        (('masks', 'out', '--palette', 'palette.txt', '--rename', '.*', ''), "would become '', expected a name"),
        (('masks', 'out', '--palette', 'masks/b/gt_3.png'), "masks/b/gt_3.png, line 1: '"),
        (('masks', 'masks', '--palette', 'palette.txt'), 'gt_3.png exists; use --force'),
    ],
)
def test_wrong_arguments(masks, palette, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    if args[0] == '.':
        monkeypatch.chdir(tmp_path / 'masks' / 'b')
        (tmp_path / 'masks/b/gt_3.png').unlink()
        args = ('.', 'out', '--palette', str(palette))
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *args)
    assert message in stop.value.code
    assert not (tmp_path / 'out').exists()
