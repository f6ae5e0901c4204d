import os
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmseg.registry import DATASETS

from mmseg_segmenter.datasets.shapes import ALL_CLASSES, draw_scene, make_shapes

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'dataset_converters' / 'make_shapes.py'


def test_layout_and_labels(tmp_path):
    make_shapes(str(tmp_path), num_images=20, size=(48, 64), num_classes=5)
    assert sorted(os.listdir(tmp_path)) == ['annotations', 'images']
    for split, count in (('training', 16), ('validation', 4)):
        images = sorted((tmp_path / 'images' / split).iterdir())
        maps = sorted((tmp_path / 'annotations' / split).iterdir())
        assert len(images) == count and [p.stem for p in images] == [p.stem for p in maps]
    labels = [cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in tmp_path.rglob('*.png')]
    assert all(one.shape == (48, 64) and one.dtype == np.uint8 for one in labels)
    assert set(np.unique(labels)) == set(range(6))  # 0 is "no class", which reduce_zero_label turns into 255


def test_same_seed_same_scenes(tmp_path):
    for name, seed in (('a', 3), ('b', 3), ('c', 4)):
        make_shapes(str(tmp_path / name), num_images=5, size=(32, 40), seed=seed)
    a, b, c = ([p.read_bytes() for p in sorted((tmp_path / n).rglob('scene*'))] for n in 'abc')
    assert a == b != c


def test_no_class_has_a_colour_of_its_own():
    """A nearest-mean-colour classifier hardly beats guessing among the shapes."""
    pixels, classes = [], []
    for i in range(60):
        image, labels = draw_scene(np.random.default_rng(i), 64, 64, 5)
        shapes = labels > 1
        pixels.append(image[shapes].astype(float))
        classes.append(labels[shapes])
    x, y = np.concatenate(pixels), np.concatenate(classes)
    half = len(y) // 2
    means = np.stack([x[:half][y[:half] == k].mean(0) for k in range(2, 6)])
    guess = 2 + np.linalg.norm(x[half:, None] - means, axis=2).argmin(1)
    accuracy = np.mean([(guess[y[half:] == k] == k).mean() for k in range(2, 6)])
    assert accuracy < 0.45  # 0.25 is chance


@pytest.mark.parametrize('num_classes', [2, len(ALL_CLASSES)])
def test_every_number_of_classes(num_classes):
    labels = np.concatenate([draw_scene(np.random.default_rng(i), 48, 48, num_classes)[1] for i in range(80)])
    assert set(np.unique(labels)) == set(range(num_classes + 1))


def test_config_matches_the_default_classes():
    cfg = Config.fromfile(ROOT / 'configs' / '_base_' / 'datasets' / 'shapes.py')
    default = ALL_CLASSES[: len(cfg.metainfo.classes)]
    assert cfg.metainfo.classes == tuple(shape.name for shape in default)
    assert cfg.metainfo.palette == [list(shape.colour) for shape in default]


def test_reads_back_through_mmseg(tmp_path):
    make_shapes(str(tmp_path), num_images=5, size=(40, 48))
    cfg = Config.fromfile(ROOT / 'configs' / '_base_' / 'datasets' / 'shapes.py').val_dataloader.dataset
    cfg.data_root = str(tmp_path)
    sample = DATASETS.build(cfg)[0]
    labels = sample['data_samples'].gt_sem_seg.data
    assert labels.shape == (1, 40, 48)
    assert set(labels.unique().tolist()) <= {0, 1, 2, 3, 4, 255}
    assert (labels == 255).any()


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--images', '4'], 'num_images=4; expected at least 5'),
        (['--classes', '1'], 'num_classes=1; expected 2 to'),
        (['--classes', '99'], 'num_classes=99; expected 2 to'),
        (['--size', '16x64'], 'size=16x64; expected at least 32x32'),
        (['--size', '64'], "'64'; expected HxW"),
    ],
)
def test_wrong_arguments(tmp_path, monkeypatch, capsys, args, message):
    out = tmp_path / 'out'
    assert message in refusal(monkeypatch, capsys, out, *args)
    assert not out.exists()


def test_existing_data_is_kept(tmp_path, monkeypatch, capsys):
    (tmp_path / 'images').mkdir()
    message = refusal(monkeypatch, capsys, tmp_path)
    assert 'images exists; remove it or choose another folder' in message
    assert list(tmp_path.rglob('*')) == [tmp_path / 'images']


def refusal(monkeypatch, capsys, *args):
    """Run the tool, which is to refuse, and return what it prints."""
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, args)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(TOOL), run_name='__main__')
    assert stop.value.code not in (0, None)
    return f'{stop.value.code}\n{capsys.readouterr().err}'
