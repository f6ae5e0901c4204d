"""Training from cached features equals training without them, and features of anything else are refused."""

import copy
import json
import os
import shutil
from pathlib import Path

import mmengine.config.config
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmseg.registry import DATASETS, MODELS
from tiny_training import training_config, write_dataset

from mmseg_segmenter.datasets import feature_cache
from mmseg_segmenter.datasets.feature_cache import INDEX, cache_features, use_cached_features
from mmseg_segmenter.errors import MissingFileError, UserError

PIPELINE = [
    dict(type='LoadImage'),
    dict(type='LoadLabelMap'),
    dict(type='RandomResize', scale=(36, 36), ratio_range=(0.7, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(32, 32), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
# DINOv3 in small, the last two blocks concatenated, with everything that draws random numbers
BACKBONE = dict(
    num_layers=2, out_indices=(0, 1), norm_outputs=True, num_registers=2, layer_scale=0.5, rope=dict(rescale=2),
    frozen_exclude=[], drop_path_rate=0.5, drop_rate=0.5,
)  # fmt: skip
HEAD = dict(
    type='LinearHead', in_channels=[16, 16], in_index=[0, 1], input_transform='resize_concat',
    num_classes=5, dropout_ratio=0.3, norm_cfg=dict(type='SyncBN'),
    loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
)  # fmt: skip


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    """The config of a training with a frozen backbone and a file of its weights."""
    folder = tmp_path_factory.mktemp('data')
    cfg = Config.fromfile(training_config(write_dataset(folder), folder, 3, 'partial'))
    cfg.merge_from_dict(dict(model=dict(backbone=BACKBONE)))
    cfg.model.decode_head = HEAD
    cfg.train_dataloader.dataset.pipeline = PIPELINE
    cfg.train_cfg.update(max_iters=7, val_interval=7)
    cfg.default_hooks.checkpoint = dict(type='SegmenterCheckpointHook', by_epoch=False, interval=7)
    with DefaultScope.overwrite_default_scope('mmseg'):
        backbone = MODELS.build(cfg.model.backbone)
    backbone.init_weights()
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(folder / 'backbone.pth'))
    torch.save(dict(state_dict=backbone.state_dict()), folder / 'backbone.pth')
    return cfg


@pytest.fixture
def config(base, tmp_path, monkeypatch):
    """Return a function that copies the config."""
    # mmengine formats the config five times in a run, which takes seconds.
    monkeypatch.setattr(mmengine.config.config, 'FormatCode', lambda text, **_: (text, True))

    def make(work_dir='run', **changes):
        cfg = copy.deepcopy(base)
        cfg.work_dir, cfg.experiment_name = str(tmp_path / work_dir), f'{tmp_path.name}-{work_dir}'
        cfg.merge_from_dict(changes)
        return cfg

    return make


def silent(*_):
    pass


def train(cfg):
    """Return the final weights and the losses of a training."""
    runner = Runner.from_cfg(cfg)
    runner.train()
    losses = runner.message_hub.log_scalars['train/loss'].data[0]
    return runner.model.state_dict(), losses, runner.message_hub.get_scalar('val/mIoU').current()


def test_training_from_features_is_bit_equal(config, tmp_path, monkeypatch):
    root = str(tmp_path / 'features')
    cache_features(config(), root, variants=2, seed=5, report=silent)
    plain = config('plain')
    plain.train_dataloader.dataset = dict(
        type='FixedVariants', dataset=plain.train_dataloader.dataset, variants=2, seed=5
    )
    weights, losses, score = train(plain)
    cached = config('cached')
    use_cached_features(cached, root)
    cached.train_dataloader.num_workers = 1
    outputs = []
    extract = MODELS.get('SegmenterViT').forward
    monkeypatch.setattr(
        MODELS.get('SegmenterViT'), 'forward', lambda self, x: outputs.append(len(x)) or extract(self, x)
    )
    ours, our_losses, our_score = train(cached)
    assert set(outputs) == {1}  # the backbone runs in validation only, one image at a time
    assert np.array_equal(losses, our_losses) and len(losses) == 7 and score == our_score
    assert all(torch.equal(ours[name], value) for name, value in weights.items())
    assert not torch.equal(weights['decode_head.bn.running_mean'], torch.zeros(32))


def test_variants_differ_and_never_change(config):
    DefaultScope.get_instance('test_feature_cache', scope_name='mmseg')
    dataset = DATASETS.build(dict(type='FixedVariants', dataset=config().train_dataloader.dataset, variants=3))
    assert len(dataset) == 3 * 13
    images = [dataset[i]['inputs'] for i in (0, 13, 26, 0)]
    assert torch.equal(images[0], images[3]) and not any(
        images[i].shape == images[j].shape and torch.equal(images[i], images[j]) for i, j in ((0, 1), (0, 2), (1, 2))
    )


def test_resumes_reports_and_halves(config, tmp_path):
    root, lines = tmp_path / 'features', []
    cache_features(config(), str(root), variants=2, half=True, report=lines.append)
    assert lines[0].startswith('26 samples (13 images x 2) of 0.00 MB') and lines[-1] == '26 of 26 samples'
    files = sorted(root.rglob('*.pt'))
    assert len(files) == 26 and not list(root.rglob('.*'))
    content = [file.read_bytes() for file in files]
    for file in files[3:7]:
        file.unlink()
    with pytest.raises(UserError, match=r'features has 22 of 26 samples; run tools/cache_features\.py again'):
        DATASETS.build(dict(type='CachedFeatures', root=str(root)))
    cache_features(config(), str(root), variants=2, half=True, report=lines.append)
    assert lines[-1] == '4 of 4 samples'
    # bit-equal, although the four were in other batches
    assert [file.read_bytes() for file in files] == content
    cache_features(config(), str(root), variants=2, half=True, report=lines.append)
    assert lines[-1] == f'{root} has all 26 samples'
    sample = DATASETS.build(dict(type='CachedFeatures', root=str(root)))[25]
    assert [maps.dtype for maps in sample['inputs']] == [torch.float32] * 2
    files[25].write_bytes(files[25].read_bytes()[:100])
    with pytest.raises(UserError, match=r'00000025\.pt cannot be read: .*; remove it and run'):
        DATASETS.build(dict(type='CachedFeatures', root=str(root)))[25]


CHANGES = {
    'pipeline': (
        {'train_dataloader.dataset.pipeline.3.crop_size': (24, 24)},
        r'train_dataloader\.dataset\.pipeline\[3\]\.crop_size\[0\]=32, and the config has 24',
    ),
    'normalisation': ({'model.data_preprocessor.mean': [0.0] * 3}, r'data_preprocessor\.mean\[0\]=127\.5, and .* 0\.0'),
    'backbone': ({'model.backbone.rope.base': 50}, r'model\.backbone\.rope\.base=nothing, and the config has 50'),
    'outputs': (
        {'model.backbone.out_indices': (1,)},
        r'model\.backbone\.out_indices=\[0, 1\], and the config has \[1\]',
    ),
}


def test_another_config_is_refused(config, tmp_path):
    root = str(tmp_path / 'features')
    _index_only(config(), root)
    for options, message in CHANGES.values():
        with pytest.raises(UserError, match=message):
            use_cached_features(config(**options), root)
    with pytest.raises(UserError, match=message):
        cache_features(config(**options), root, report=silent)
    # what features do not depend on
    cfg = config(**{'model.decode_head.dropout_ratio': 0.0, 'train_dataloader.dataset.data_root': 'elsewhere'})
    use_cached_features(cfg, root)


def _index_only(cfg, root):
    cache_features(cfg, root, report=silent)
    shutil.rmtree(os.path.join(root, '00000'))


def test_other_weights_are_refused(config, tmp_path):
    root, weights = str(tmp_path / 'features'), str(tmp_path / 'other.pth')
    cfg = config()
    cache_features(cfg, root, report=silent)
    state = torch.load(cfg.model.backbone.init_cfg.checkpoint)
    state['state_dict']['layers.1.ln2.bias'][0] += 1e-6
    torch.save(state, weights)
    cfg = config('other', **{'model.backbone.init_cfg.checkpoint': weights})
    with pytest.raises(UserError, match='are those of other weights of the backbone; use another folder'):
        cache_features(cfg, root, report=silent)
    use_cached_features(cfg, root)
    with pytest.raises(UserError, match='other weights of the backbone; start from the same'):
        Runner.from_cfg(cfg).train()
    assert not list((tmp_path / 'other').rglob('*.pth'))


def test_a_backbone_that_learns_is_refused(config, tmp_path):
    cfg = config(**{'model.backbone.frozen_exclude': ['layers.1.ln1']})
    with pytest.raises(UserError, match=r'backbone\.layers\.1\.ln1\.weight is trained; set .*frozen_exclude=\[\]'):
        cache_features(cfg, str(tmp_path / 'features'), report=silent)
    assert not (tmp_path / 'features').exists()


def test_other_options_need_another_folder(config, tmp_path):
    root = str(tmp_path / 'features')
    _index_only(config(), root)
    for name, value in (('variants', 2), ('seed', 1), ('half', True)):
        with pytest.raises(UserError, match=f'{name}=.*, not {value}; use another folder'):
            cache_features(config(), root, report=silent, **{name: value})


def test_folders_without_features(config, tmp_path):
    with pytest.raises(
        MissingFileError, match=rf'{INDEX} not found; tools/cache_features\.py CONFIG .* makes features'
    ):
        use_cached_features(config(), str(tmp_path))
    for text in ('{', '[]', json.dumps(dict(samples=3))):
        (tmp_path / INDEX).write_text(text)
        with pytest.raises(UserError, match='is not a description of features; remove'):
            use_cached_features(config(), str(tmp_path))


def test_a_disk_that_is_too_small(config, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache.write.shutil, 'disk_usage', lambda _: shutil._ntuple_diskusage(9, 9, 20000))
    with pytest.raises(UserError, match=r'has 0\.00 GB free, and the features take 0\.00 GB; use fewer variants'):
        cache_features(config(), str(tmp_path / 'features'), report=silent)
    assert not list(Path(tmp_path / 'features').rglob('*'))
