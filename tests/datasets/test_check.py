"""The dataset check finds, names and counts every kind of problem, and finds none in a sound dataset."""

import copy
import functools
import gc
import json
import multiprocessing
import os
import runpy
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from own_data import CLASSES, make_dataset
from PIL import Image

from mmseg_segmenter.datasets.check import check_dataset, files, workers
from mmseg_segmenter.datasets.check.configuration import ModelSettings, build_datasets
from mmseg_segmenter.datasets.check.files import FileInspector
from mmseg_segmenter.datasets.check.report import as_text
from mmseg_segmenter.errors import UserError

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs' / 'segmenter' / 'segmenter_vit-s_mask_own.py'
TOOL = ROOT / 'tools' / 'analysis_tools' / 'check_dataset.py'


@pytest.fixture(autouse=True, scope='module')
def _quick_collections():
    """Exclude torch's objects from the garbage collection that mmengine runs for each dataset it builds."""
    gc.freeze()
    yield
    gc.unfreeze()


@functools.cache
def own_config():
    return Config.fromfile(CONFIG)


def config(root):
    cfg = copy.deepcopy(own_config())
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.update(data_root=str(root), metainfo=dict(classes=CLASSES))
    cfg.model.decode_head.num_classes = len(CLASSES)
    return cfg


def set_dataset(cfg, **values):
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.update(values)
    return cfg


@pytest.fixture
def root(tmp_path):
    return make_dataset(tmp_path / 'data')


def problems(cfg):
    """(severity, split, kind) -> problem."""
    return {(p.severity, p.split, p.kind): p for p in check_dataset(cfg, 1, progress=False).problems}


def rewrite(path, change):
    cv2.imwrite(str(path), change(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)))


def relabel(root, table):
    for path in (root / 'annotations').rglob('*.png'):
        rewrite(path, lambda labels: np.array(table, np.uint8)[labels])


def table(**changes):
    values = list(range(256))
    for old, new in changes.items():
        values[int(old[1:])] = new
    return values


def test_a_sound_dataset(root):
    report = check_dataset(config(root), 1, progress=False)
    assert report.problems == []
    assert set(report.splits) == {'train', 'val'}  # test is val here, and not read twice
    statistics = report.splits['train']
    assert statistics.images == 6 and statistics.heights == (40, 40) and statistics.widths == (48, 48)
    assert statistics.label_images == {0: 6, 1: 6, 2: 6, 255: 6}
    left = sum(32 * (10 + i) for i in range(6))
    assert statistics.label_pixels[1] == left and statistics.label_pixels[2] == 6 * 32 * 18
    assert statistics.label_pixels[255] == 6 * 2 * 48 and sum(statistics.label_pixels.values()) == 6 * 40 * 48


def test_processes_agree_with_one(root):
    (root / 'images/train/train_0.jpg').write_bytes(b'')
    one, two = (check_dataset(config(root), count, progress=False) for count in (1, 2))
    assert one.splits == two.splits and one.problems == two.problems


def test_a_worker_that_dies_is_one_clear_error(root, monkeypatch):
    inspect = FileInspector.inspect
    monkeypatch.setattr(
        FileInspector, 'inspect', lambda self, indices: os._exit(1) if self.split == 'val' else inspect(self, indices)
    )
    with pytest.raises(UserError, match=r'a worker process died at or after .*images/(train/train|val/val)_0\.jpg'):
        check_dataset(config(root), 2, progress=False)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize('error', [KeyboardInterrupt, MemoryError])
def test_no_worker_is_left_after_an_error(root, monkeypatch, error):
    def interrupt(*args):
        raise error

    monkeypatch.setattr('mmseg_segmenter.datasets.check.Duplicates.add', interrupt)
    with pytest.raises(error):
        check_dataset(config(root), 2, progress=False)
    assert not multiprocessing.active_children()


def test_few_tasks_are_ahead_of_the_reader(root, monkeypatch):
    monkeypatch.setattr(workers, '_CHUNK', 1)
    monkeypatch.setattr(workers, '_TASKS_AHEAD', 1)
    started = []
    submit = ProcessPoolExecutor.submit
    monkeypatch.setattr(
        ProcessPoolExecutor, 'submit', lambda self, run, task: (started.append(task), submit(self, run, task))[1]
    )
    model, datasets = ModelSettings.from_config(config(root)), build_datasets(config(root))
    inspectors = [FileInspector(split, group[0], model) for split, group in datasets.items()]
    results = workers.inspect_all(inspectors, 2, progress=False)
    assert next(results)[1].images == 1 and len(started) == 2
    assert [k for k, _ in results] == [0] * 5 + [1] * 3 and len(started) == 9


# Ten kinds of damage


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])


def lose(root):
    (root / 'annotations/train/train_1.png').unlink()
    (root / 'annotations/train/train_4.png').unlink()


def add_colour(labels):
    return np.stack([labels] * 3, axis=2)


def sixteen_bits(labels):
    return np.where(labels == 2, np.uint16(300), labels)


DAMAGES = {
    'image without mask': (lose, ('ERROR', 'train', 'image_without_mask'), 2, 'train_1.jpg'),
    'mask without image': (
        lambda root: (root / 'images/val/val_0.jpg').unlink(),
        ('WARNING', 'val', 'mask_without_image'), 1, 'val_0.png',
    ),
    'truncated image': (
        lambda root: truncate(root / 'images/train/train_2.jpg'),
        ('ERROR', 'train', 'image_truncated'), 1, 'train_2.jpg',
    ),
    'truncated mask': (
        lambda root: truncate(root / 'annotations/train/train_3.png'),
        ('ERROR', 'train', 'mask_truncated'), 1, 'train_3.png',
    ),
    'not an image': (
        lambda root: (root / 'images/train/train_0.jpg').write_text('<html>404</html>'),
        ('ERROR', 'train', 'image_unreadable'), 1, 'train_0.jpg',
    ),
    'other size': (
        lambda root: rewrite(root / 'annotations/val/val_1.png', lambda labels: labels[:, :-4]),
        ('ERROR', 'val', 'size_mismatch'), 1, 'val_1.png (mask 40x44, image 40x48)',
    ),
    'RGB mask': (
        lambda root: rewrite(root / 'annotations/train/train_5.png', add_colour),
        ('ERROR', 'train', 'mask_colour'), 1, 'train_5.png (RGB, 4 colours',
    ),
    '16-bit mask': (
        lambda root: rewrite(root / 'annotations/train/train_5.png', sixteen_bits),
        ('ERROR', 'train', 'labels_outside'), 1, 'train_5.png (label 300)',
    ),
    'label outside the classes': (
        lambda root: rewrite(root / 'annotations/train/train_1.png', lambda labels: np.where(labels == 2, 7, labels)),
        ('ERROR', 'train', 'labels_outside'), 1, 'train_1.png (label 7)',
    ),
    'in both splits': (
        lambda root: shutil.copy(root / 'images/train/train_3.jpg', root / 'images/val/val_2.jpg'),
        ('ERROR', 'val', 'leak'), 1, 'val_2.jpg (same as',
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', DAMAGES)
def test_damage(root, name):
    damage, key, count, file = DAMAGES[name]
    damage(root)
    found = problems(config(root))
    assert list(found) == [key]  # and nothing else
    assert found[key].count == count == len(found[key].files)
    assert file in found[key].files[0]


def test_16_bit_mask_that_mmseg_cuts(root):
    cfg = config(root)
    for split in ('train', 'val', 'test'):
        pipeline = cfg[f'{split}_dataloader'].dataset.pipeline
        next(t for t in pipeline if t.type == 'LoadLabelMap').type = 'LoadAnnotations'
    DAMAGES['16-bit mask'][0](root)
    found = problems(cfg)
    assert list(found) == [('ERROR', 'train', 'labels_cut_to_8_bits')]
    assert 'train_5.png (largest value 300)' in found['ERROR', 'train', 'labels_cut_to_8_bits'].files[0]


def test_all_damages_at_once(root):
    """A problem does not hide another one."""
    for damage in ('truncated image', 'other size', 'label outside the classes', 'in both splits'):
        DAMAGES[damage][0](root)
    assert len(problems(config(root))) == 4


# Hints about labels


def hint_of(cfg, kind):
    hints = [p.hint for p in check_dataset(cfg, 1, progress=False).problems if p.kind == kind]
    assert len(hints) == 2 and hints[0] == hints[1]  # of train and val
    return hints[0]


def test_labels_from_1(root):
    relabel(root, table(_0=1, _1=2, _2=3))
    assert 'labels start at 1; set reduce_zero_label=True' in hint_of(config(root), 'labels_outside')
    assert problems(set_dataset(config(root), reduce_zero_label=True)) == {}


def test_zero_is_one_class_too_many(root):
    relabel(root, table(_0=1, _1=2, _2=3, _255=0))
    hint = hint_of(config(root), 'labels_outside')
    assert 'set reduce_zero_label=True' in hint and 'add its name as the first of classes' in hint
    assert problems(set_dataset(config(root), reduce_zero_label=True)) == {}


def test_masks_that_only_the_backend_of_the_config_reads(root, monkeypatch):
    relabel(root, table(_0=1, _1=2, _2=3))
    monkeypatch.setattr(files, '_decode', lambda content: files._Decoded('unknown to Pillow', None, ''))
    assert hint_of(config(root), 'labels_outside') == ''  # what the files hold is not known


def test_reduce_zero_label_that_should_not_be(root):
    found = problems(set_dataset(config(root), reduce_zero_label=True))
    assert {key[2] for key in found} == {'class_never_seen', 'mostly_ignored'}
    problem = found['WARNING', 'train', 'class_never_seen']
    assert problem.message == '1 of 3 classes never seen: 2 right' and 'set it to False' in problem.hint


def test_values_with_gaps(root):
    relabel(root, table(_1=100, _2=200))
    assert "LoadLabelMap', values=(0, 100, 200)" in hint_of(config(root), 'labels_outside')


def binary(cfg):
    cfg.model.decode_head.num_classes = 2
    return set_dataset(cfg, metainfo=dict(classes=['background', 'object']))


def test_binary_masks_of_0_and_255(root):
    relabel(root, table(_1=255, _2=255, _255=0))
    cfg = binary(config(root))
    assert "LoadLabelMap', values=(0, 255)" in hint_of(cfg, 'binary_255')
    for split in ('train', 'val'):
        pipeline = cfg[f'{split}_dataloader'].dataset.pipeline
        load = next(t for t in pipeline if t.type == 'LoadLabelMap')
        load.update(values=(0, 255))
    cfg.test_dataloader = None
    assert problems(cfg) == {}


def test_grey_levels_of_a_binary_mask(root):
    relabel(root, table(_1=255, _2=254, _255=3))
    rewrite(root / 'annotations/train/train_0.png', lambda labels: cv2.GaussianBlur(labels, (5, 5), 0))
    problem = problems(binary(config(root)))['ERROR', 'train', 'labels_outside']
    assert '--tolerance 127' in problem.hint


def test_everything_ignored(root):
    relabel(root, [255] * 256)
    found = problems(config(root))
    assert ('ERROR', 'train', 'all_ignored') in found
    assert found['WARNING', 'train', 'mask_all_ignored'].count == 6


# File names


def test_suffix_of_the_masks(root):
    for path in (root / 'annotations').rglob('*.png'):
        path.rename(path.with_name(f'{path.stem}_gt.png'))
    found = problems(config(root))
    assert found['ERROR', 'train', 'image_without_mask'].count == 6
    assert found['ERROR', 'train', 'image_without_mask'].hint == (
        "masks are named <image>_gt.png: set seg_map_suffix='_gt.png'"
    )
    assert problems(set_dataset(config(root), seg_map_suffix='_gt.png')) == {}


def test_other_names(root):
    for path in (root / 'annotations').rglob('*.png'):
        path.rename(path.with_name(f'gt_{path.name}'))
    assert 'masks are named gt_<image>.png' in problems(config(root))['ERROR', 'train', 'image_without_mask'].hint
    for path in (root / 'annotations').rglob('*.png'):
        path.rename(path.with_name(f'mask-{path.stem[-1]}.png'))
    hint = problems(config(root))['ERROR', 'train', 'image_without_mask'].hint
    assert hint.startswith('train_0.jpg may belong to mask-0.png')


def test_no_table_without_labels(root):
    for path in (root / 'annotations').rglob('*.png'):
        path.unlink()
    report = check_dataset(config(root), 1, progress=False)
    assert [(p.split, p.count, p.hint) for p in report.problems] == [
        ('train', 6, f'{root}/annotations/train is empty'), ('val', 3, f'{root}/annotations/val is empty'),
    ]  # fmt: skip
    assert 'train pixels' not in as_text(report)


def test_files_that_are_passed_over(root):
    (root / 'images/train/train_5.jpg').rename(root / 'images/train/train_5.JPG')
    found = problems(config(root))
    assert found['WARNING', 'train', 'file_not_used'].files == [f'{root}/images/train/train_5.JPG (expected .jpg)']
    assert found['WARNING', 'train', 'mask_without_image'].count == 1


def test_images_and_masks_in_one_folder(root):
    for kind in ('images', 'annotations'):
        for path in (root / kind / 'train').iterdir():
            image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            (root / 'both').mkdir(exist_ok=True)
            cv2.imwrite(str(root / 'both' / f'{path.stem}{"_mask" * (kind == "annotations")}.png'), image)
    cfg = config(root)
    cfg.val_dataloader = cfg.test_dataloader = None
    cfg.train_dataloader.dataset.update(
        img_suffix='.png', seg_map_suffix='_mask.png', data_prefix=dict(img_path='both', seg_map_path='both')
    )
    problem = problems(cfg)['ERROR', 'train', 'image_without_mask']
    assert problem.count == 6 and 'use two folders' in problem.hint


def test_a_list_of_files(root):
    """Files that are not in the list are left out on purpose, and not reported."""
    (root / 'train.txt').write_text('train_0\ntrain_1\nnot_there\n')
    cfg = config(root)
    cfg.train_dataloader.dataset.ann_file = 'train.txt'
    found = problems(cfg)
    assert set(found) == {('ERROR', 'train', 'image_unreadable'), ('ERROR', 'train', 'image_without_mask')}
    assert check_dataset(cfg, 1, progress=False).splits['train'].images == 3


# Images, and settings that contradict each other


def test_smaller_than_the_crop(root):
    cfg = config(root)
    pipeline = cfg.train_dataloader.dataset.pipeline
    pipeline[3].crop_size = (600, 512)  # behind a resize that makes the short side 512
    assert problems(cfg)['WARNING', 'train', 'smaller_than_crop'].files[0].endswith('(40x48, resized to 512x614)')
    pipeline[3].crop_size = (32, 64)
    del pipeline[2]
    assert problems(cfg)['WARNING', 'train', 'smaller_than_crop'].count == 6


def test_rotation_in_the_metadata(root):
    path = root / 'images/train/train_1.jpg'
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(path, exif=exif)
    found = problems(config(root))
    assert set(found) == {('WARNING', 'train', 'image_rotated'), ('ERROR', 'train', 'size_mismatch')}


def test_sixteen_bit_and_grey_images(root):
    for path in (root / 'images').rglob('*.jpg'):
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(path.with_suffix('.png')), image.astype(np.uint16) * 200)
        path.unlink()
    cfg = set_dataset(config(root), img_suffix='.png')
    assert problems(cfg)['WARNING', 'train', 'image_cut_to_8_bits'].count == 6
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.pipeline[0].color_type = 'unchanged'
    found = problems(cfg)
    assert found['ERROR', 'train', 'image_channels'].files[0].endswith('(1 instead of 3)')
    assert 'pixel values up to' in found['WARNING', 'train', 'normalisation'].message


def test_twice_in_one_split(root):
    with Image.open(root / 'images/train/train_0.jpg') as image:
        image.save(root / 'images/train/train_1.png')  # the same pixels in another file
    (root / 'images/train/train_1.jpg').unlink()
    (root / 'images/train/train_1.png').rename(root / 'images/train/train_1.jpg')
    found = problems(config(root))
    assert list(found) == [('WARNING', 'train', 'duplicate')]


def test_contradicting_settings(root):
    cfg = config(root)
    cfg.model.decode_head.update(num_classes=4, ignore_index=3)
    messages = [p.message for p in check_dataset(cfg, 1, progress=False).problems if not p.split]
    assert 'train has 3 classes (ground, left, right), the head has num_classes=4' in messages
    assert 'ignore_index=3 is one of the 4 classes' in messages
    for place in ('data_preprocessor.seg_pad_val', 'val_evaluator, IoUMetric.ignore_index'):
        assert f'{place} is 255, ignore_index of the head is 3' in messages
    assert 'train pipeline, RandomCrop.ignore_index is 255, ignore_index of the head is 3' in messages


def test_settings_that_would_spoil_every_file(root):
    cfg = config(root)
    cfg.train_dataloader.dataset.pipeline[1].reduce_zero_label = True
    with pytest.raises(ValueError, match='LoadLabelMap has reduce_zero_label=True, the dataset has False'):
        check_dataset(cfg, 1, progress=False)
    with pytest.raises(ValueError, match="classes='road' is a string; expected a list"):
        check_dataset(set_dataset(config(root), metainfo=dict(classes='road')), 1, progress=False)
    with pytest.raises(ValueError, match='workers=0; expected at least 1'):
        check_dataset(config(root), 0)
    cfg = config(root)
    cfg.model = None
    with pytest.raises(ValueError, match=r'has no model\.decode_head\.num_classes'):
        check_dataset(cfg, 1, progress=False)


def test_wrapped_datasets(root):
    cfg = config(root)
    inner = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = dict(
        type='ConcatDataset', datasets=[inner, dict(type='RepeatDataset', times=3, dataset=inner)]
    )
    report = check_dataset(cfg, 1, progress=False)
    assert report.splits['train'].images == 12
    assert [(p.kind, p.count) for p in report.problems] == [('duplicate', 6)]


# The command line


def run(monkeypatch, capsys, *args):
    """Exit code, stdout, stderr."""
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, args)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(TOOL), run_name='__main__')
    out, err = capsys.readouterr()
    return (stop.value.code, out, err) if isinstance(stop.value.code, int) else (1, out, stop.value.code)


def test_command_line(root, tmp_path, monkeypatch, capsys):
    path = tmp_path / 'own.py'
    text = CONFIG.read_text().replace("'../_base_", f"'{CONFIG.parent.parent}/_base_")
    text = text.replace("'data/own'", repr(str(root))).replace("['background', 'road', 'building']", repr(CLASSES))
    path.write_text(text)
    assert 'cannot write /dev/null/p.png: ' in run(monkeypatch, capsys, path, '--plot', '/dev/null/p.png')[2]
    files = ('--json', tmp_path / 'o/r.json', '--plot', tmp_path / 'o/p.png')
    code, out, err = run(monkeypatch, capsys, path, '--workers', 1, *files)
    assert code == 0 and '0 errors, 0 warnings; 9 images in' in out and '9/9' in err
    report = json.loads((tmp_path / 'o/r.json').read_text())
    assert report['splits']['train']['label_images'] == {'0': 6, '1': 6, '2': 6, '255': 6}
    assert report['splits']['val']['images'] == 3 and report['problems'] == []
    with Image.open(tmp_path / 'o/p.png') as image:
        assert image.format == 'PNG' and image.width > 600
    assert sorted(p.name for p in (tmp_path / 'o').iterdir()) == ['p.png', 'r.json']
    for i in range(5):
        truncate(root / f'annotations/train/train_{i}.png')
    option = 'val_dataloader.dataset.reduce_zero_label=True'
    code, out, _ = run(monkeypatch, capsys, path, '--workers', 1, '--cfg-options', option)
    assert code == 1
    assert 'ERROR train: truncated masks: 5' in out and 'and 2 more' in out
    assert 'WARNING val: 1 of 3 classes never seen: 2 right' in out
    option = 'train_dataloader.dataset.data_root=nowhere'
    code, _, err = run(monkeypatch, capsys, path, '--cfg-options', option)
    assert code == 1
    assert err.startswith('check_dataset.py: train_dataloader: dataset folder nowhere/images/train not found')


def test_table_of_classes(root):
    rows = [line.split() for line in as_text(check_dataset(config(root), 1, progress=False)).splitlines()]
    total = 6 * 40 * 48 - 6 * 2 * 48
    row = next(row for row in rows if row[:2] == ['2', 'right'])
    assert row[2:4] == [f'{6 * 32 * 18 / total:.3%}', '6'] and row[5] == '3'
    assert next(row for row in rows if row[:1] == ['ignored'])[1:3] == [f'{2 / 40:.3%}', '6']
