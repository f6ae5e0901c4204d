"""Every config in docs/own_dataset.md passes the dataset check, trains for a step and is evaluated."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from own_data import CLASSES, make_dataset

from mmseg_segmenter.datasets.check import check_dataset

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs' / 'segmenter'
DOC = (ROOT / 'docs' / 'own_dataset.md').read_text()
BLOCKS = re.findall(r'^```python\n(.*?)^```', DOC, re.S | re.M)


def block(name):
    """Return the config that the document calls ``configs/segmenter/NAME``."""
    (found,) = [text for text in BLOCKS if text.startswith(f'# configs/segmenter/{name}\n')]
    return found


@pytest.fixture
def folder(tmp_path):
    """Return a folder of configs, as in a checkout."""
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs/_base_').symlink_to(ROOT / 'configs/_base_')
    (tmp_path / 'configs/segmenter').mkdir()
    return tmp_path / 'configs/segmenter'


def edited(name, **lines):
    """Return an example config with some of its four lines replaced."""
    text = (CONFIGS / name).read_text()
    for key, value in lines.items():
        text, count = re.subn(rf'^{key} = .*$', f'{key} = {value!r}', text, flags=re.M)
        assert count == 1, key
    return text


def shrunk(path, work_dir):
    """Return the config with a model and a schedule that take a second."""
    cfg = Config.fromfile(path)
    cfg.model.backbone.update(embed_dims=32, num_layers=1, num_heads=2, init_cfg=None, img_size=(64, 64))
    cfg.model.decode_head.update(in_channels=32, embed_dims=32, num_layers=1, num_heads=2)
    cfg.model.data_preprocessor.size = (64, 64)
    cfg.model.test_cfg.update(crop_size=(64, 64), stride=(48, 48))
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        for transform in loader.dataset.pipeline:
            if 'scale' in transform:
                transform.scale = (256, 64)
            if 'crop_size' in transform:
                transform.crop_size = (64, 64)
    cfg.train_dataloader.batch_size = 2
    cfg.merge_from_dict({'train_cfg.max_iters': 1, 'train_cfg.val_interval': 1, 'env_cfg.cudnn_benchmark': False})
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = work_dir.parent.parent.name
    return cfg


def train(path, tmp_path, problems=frozenset()):
    """Check the dataset, train one step, evaluate, and return the scores. The check must find exactly ``problems``."""
    cfg = shrunk(path, tmp_path / 'work' / 'dir')
    report = check_dataset(cfg, 1, progress=False)
    assert {problem.kind for problem in report.problems} == problems
    runner = Runner.from_cfg(cfg)
    before = runner.model.backbone.patch_embed.projection.weight.detach().clone()
    runner.train()
    assert not torch.equal(before, runner.model.backbone.patch_embed.projection.weight)
    hub = runner.message_hub
    assert np.isfinite(hub.get_scalar('train/loss').current())
    return {k.removeprefix('val/'): hub.get_scalar(k).current() for k in hub.log_scalars if k.startswith('val/')}


@pytest.mark.parametrize('name', ['segmenter/segmenter_vit-s_mask_own.py', 'eomt/eomt_dinov2-s_own.py'])
def test_the_four_lines_are_those_of_the_config(name):
    lines = BLOCKS[0].splitlines()
    assert len(lines) == 4
    config = (CONFIGS.parent / name).read_text()
    for line in lines:
        assert re.search(rf'^{re.escape(line)}(  #.*)?$', config, re.M)


def test_four_lines(folder, tmp_path):
    make_dataset(tmp_path / 'mine')
    (folder / 'my.py').write_text(
        edited('segmenter_vit-s_mask_own.py', data_root=str(tmp_path / 'mine'), classes=CLASSES)
    )
    scores = train(folder / 'my.py', tmp_path)
    assert set(scores) >= {'aAcc', 'mIoU', 'mAcc'}
    assert list((tmp_path / 'work/dir').glob('best_mIoU_iter_1.pth'))


def test_binary(folder, tmp_path):
    root = make_dataset(tmp_path / 'mine')
    for path in (root / 'annotations').rglob('*.png'):
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), np.where(labels == 1, 255, 0).astype(np.uint8))
    (folder / 'segmenter_vit-s_mask_own.py').write_text((CONFIGS / 'segmenter_vit-s_mask_own.py').read_text())
    (folder / 'my.py').write_text(edited('segmenter_vit-s_mask_own-binary.py', data_root=str(root)))
    scores = train(folder / 'my.py', tmp_path)
    assert set(scores) >= {'mIoU', 'mFscore', 'mPrecision', 'mRecall', 'MAE'}
    assert 0 < scores['MAE'] < 1


def test_sixteen_bit_images(folder, tmp_path):
    root = make_dataset(tmp_path / 'mine')
    for path in (root / 'images').rglob('*.jpg'):
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(np.uint16) * 256
        cv2.imwrite(str(path.with_suffix('.png')), image)
        path.unlink()
    text = edited('segmenter_vit-s_mask_own.py', data_root=str(root), classes=CLASSES)
    (folder / 'my_dataset.py').write_text(text.replace("= '.jpg', '.png'", "= '.png', '.png'"))
    (folder / 'my_16bit_images.py').write_text(block('my_16bit_images.py'))
    cfg = shrunk(folder / 'my_16bit_images.py', tmp_path)
    dataset = Runner.build_dataloader(cfg.val_dataloader).dataset
    seen = dataset[0]['inputs']
    assert seen.shape[0] == 1 and seen.max() > 255 and seen.dtype == torch.float32
    assert 'mIoU' in train(folder / 'my_16bit_images.py', tmp_path)


@pytest.mark.slow
def test_more_than_255_classes(folder, tmp_path):
    root = make_dataset(tmp_path / 'mine')
    for path in (root / 'annotations').rglob('*.png'):
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.uint16)
        wide = np.select([labels == 1, labels == 2, labels == 255], [255, 299, 65535], 0).astype(np.uint16)
        wide[3] = np.arange(wide.shape[1]) + 256  # a few of the others
        cv2.imwrite(str(path), wide)
    names = [f'c{i}' for i in range(304)]
    (folder / 'my_dataset.py').write_text(edited('segmenter_vit-s_mask_own.py', data_root=str(root), classes=names))
    (folder / 'my_16bit_masks.py').write_text(block('my_16bit_masks.py'))
    cfg = shrunk(folder / 'my_16bit_masks.py', tmp_path)
    labels = Runner.build_dataloader(cfg.val_dataloader).dataset[0]['data_samples'].gt_sem_seg.data
    assert {0, 255, 299, 65535} <= set(labels.unique().tolist())
    assert 'mIoU' in train(folder / 'my_16bit_masks.py', tmp_path, {'class_never_seen'})
    plain = check_dataset(shrunk(folder / 'my_dataset.py', tmp_path), 1, progress=False)
    assert {'labels_outside', 'ignore_index'} <= {p.kind for p in plain.errors}
