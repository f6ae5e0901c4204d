"""The config of a converted official run: the official images, no bases, and nothing that runs."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import official
import pytest
import torch
from mmengine.config import Config
from mmseg.registry import DATASETS, MODELS

from mmseg_segmenter.apis.loading import annotation_format
from mmseg_segmenter.checkpoints import official_config
from mmseg_segmenter.checkpoints.official_run import convert_official_run

CONFIGS = Path(__file__).parents[2] / 'configs'
# segm/data/config/*.py, segm/config.yml and segm/data/utils.py: the largest ratio of long and short side, short side,
# crop, and whether label 0 is "no class".
OFFICIAL = {
    'ade20k': (4, 512, 512, True),
    'pascal_context': (8, 520, 480, False),
    'cityscapes': (2, 1024, 768, False),
}
RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # BaseMMSeg.set_multiscale_mode
STATS = {'vit': ([127.5] * 3, [127.5] * 3), 'deit': ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])}


def make_run(folder, dataset='ade20k', image_size=64, crop_size=64, normalization='vit', extra=''):
    folder.mkdir(parents=True)
    torch.save(dict(model=official.weights(official.load('linear'))), folder / 'checkpoint.pth')
    (folder / 'variant.yml').write_text(
        f'dataset_kwargs: {{dataset: {dataset}, image_size: {image_size}, crop_size: {crop_size}}}\n'
        f'net_kwargs: {{image_size: [64, 64], n_heads: 3, normalization: {normalization}}}\n{extra}'
    )
    return folder


def converted(tmp_path, *args, **kwargs):
    run = make_run(tmp_path / 'run', *args, **kwargs)
    convert_official_run(str(run), str(tmp_path / 'out'))
    return Config.fromfile(tmp_path / 'out' / 'config.py')


def steps(pipeline):
    """Transforms by type, which is different for each."""
    return {step.type: step for step in pipeline}


# The images


@pytest.mark.parametrize('normalization', STATS)
@pytest.mark.parametrize('dataset', OFFICIAL)
def test_images_are_the_official_ones(tmp_path, dataset, normalization):
    ratio, side, crop, reduce_zero_label = OFFICIAL[dataset]
    cfg = converted(tmp_path, dataset, side, crop, normalization)
    train, test, tta = cfg.train_dataloader.dataset.pipeline, cfg.test_dataloader.dataset.pipeline, cfg.tta_pipeline
    assert list(steps(train)) == [
        'LoadImage', 'LoadLabelMap', 'RandomResize', 'RandomCrop', 'RandomFlip', 'PhotoMetricDistortion',
        'PackSegInputs',
    ]  # fmt: skip
    found = steps(train)
    assert annotation_format(cfg).reduce_zero_label is reduce_zero_label
    resize, photometric = found['RandomResize'], found['PhotoMetricDistortion']
    assert (resize.scale, resize.ratio_range, resize.keep_ratio) == ((ratio * side, side), (0.5, 2.0), True)
    assert (found['RandomCrop'].crop_size, found['RandomCrop'].cat_max_ratio) == ((crop, crop), 0.75)
    assert found['RandomFlip'].prob == 0.5 and photometric == dict(type='PhotoMetricDistortion')
    for pipeline in (test, cfg.val_dataloader.dataset.pipeline, cfg.test_pipeline):
        assert steps(pipeline)['Resize'] == dict(type='Resize', scale=(ratio * side, side), keep_ratio=True)
    resizes, flips = tta[1].transforms[:2]
    assert [step.scale for step in resizes] == [(int(ratio * side * r), int(side * r)) for r in RATIOS]
    assert all(step.keep_ratio for step in resizes)
    assert [(flip.prob, flip.direction) for flip in flips] == [(0.0, 'horizontal'), (1.0, 'horizontal')]
    preprocessor = cfg.model.data_preprocessor
    assert (preprocessor.mean, preprocessor.std) == STATS[normalization] and preprocessor.bgr_to_rgb
    assert (preprocessor.size, preprocessor.pad_val, preprocessor.seg_pad_val) == ((crop, crop), 0, 255)
    assert (cfg.model.test_cfg.crop_size, cfg.model.test_cfg.stride) == ((crop, crop), (crop - 32, crop - 32))


def test_ade20k_at_640_is_what_our_config_of_it_has(tmp_path):
    cfg = converted(tmp_path, 'ade20k', 640, 640)
    ours = Config.fromfile(CONFIGS / 'segmenter' / 'segmenter_vit-l_mask_8xb2-160k_ade20k-640x640.py')
    for key in ('train_pipeline', 'test_pipeline', 'tta_pipeline'):
        assert cfg[key] == _without_scope(ours[key]), key
    assert cfg.model.test_cfg == ours.model.test_cfg
    assert cfg.model.data_preprocessor == ours.model.data_preprocessor
    text = (tmp_path / 'out' / 'config.py').read_text()
    assert 'segm.eval.miou --im-size 640 does the same; without the option, it resizes to 512' in text


def _without_scope(node):
    if isinstance(node, list | tuple):
        return type(node)(map(_without_scope, node))
    return {k: _without_scope(v) for k, v in node.items() if k != '_scope_'} if isinstance(node, dict) else node


@pytest.mark.parametrize('dataset', OFFICIAL)
def test_other_sizes_are_set_everywhere(tmp_path, dataset):
    ratio = OFFICIAL[dataset][0]
    cfg = converted(tmp_path, dataset, image_size=333, crop_size=97)
    for pipeline in (cfg.train_pipeline, cfg.train_dataloader.dataset.pipeline):
        assert steps(pipeline)['RandomCrop'].crop_size == (97, 97)
        assert steps(pipeline)['RandomResize'].scale == (ratio * 333, 333)
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        assert steps(loader.dataset.pipeline)['Resize'].scale == (ratio * 333, 333)
    scales = [step.scale for step in cfg.tta_pipeline[1].transforms[0]]
    assert scales == [(int(ratio * 333 * r), int(333 * r)) for r in RATIOS]
    assert cfg.model.data_preprocessor.size == cfg.model.test_cfg.crop_size == (97, 97)
    assert cfg.model.test_cfg.stride == (65, 65) and cfg.model.backbone.img_size == (64, 64)
    # variables that bases compute other values from, and that say nothing here
    assert not {'crop_size', 'img_scale', 'img_ratios', 'optimizer', 'dataset_type', 'model_settings'} & cfg.keys()


@pytest.mark.parametrize(('dataset', 'lr'), [('ade20k', 1e-3), ('pascal_context', 1e-3), ('cityscapes', 1e-2)])
def test_schedule_is_the_official_one(tmp_path, dataset, lr):
    cfg = converted(tmp_path, dataset)
    assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=lr, momentum=0.9, nesterov=True, weight_decay=0.0)
    assert cfg.train_cfg.max_iters == (160000 if dataset == 'ade20k' else 80000)


def test_short_side_of_an_image(tmp_path):
    """Through the dataset and the preprocessor: what mmseg's own base would make 520 pixels long is 520 high."""
    cfg = converted(tmp_path, 'pascal_context', 520, 480)
    dataset = cfg.test_dataloader.dataset
    for kind, suffix in (('img_path', '.jpg'), ('seg_map_path', '.png')):
        folder = tmp_path / 'data' / dataset.data_prefix[kind]
        folder.mkdir(parents=True)
        cv2.imwrite(str(folder / f'a{suffix}'), np.zeros((100, 150), np.uint8))
    (tmp_path / 'val.txt').write_text('a\n')
    dataset.update(data_root=str(tmp_path / 'data'), ann_file=str(tmp_path / 'val.txt'))
    assert DATASETS.build(dataset)[0]['inputs'].shape == (3, 520, 780)


# The folder stands alone

ALONE = """
import sys
import mmengine.config.config as module
from mmengine.config import Config

def get_cfg_path(path, filename):
    sys.exit(f'has a base: {path}')

module.Config._get_cfg_path = staticmethod(get_cfg_path)
cfg = Config.fromfile('config.py')
print(cfg.train_cfg.max_iters, cfg.model.type, cfg.tta_model.type)
"""


def test_folder_stands_alone(tmp_path):
    """From another working directory, in a process that cannot read any base."""
    converted(tmp_path, 'cityscapes')
    alone = tmp_path / 'elsewhere' / 'alone'
    shutil.move(str(tmp_path / 'out'), str(alone))
    result = subprocess.run([sys.executable, '-c', ALONE], cwd=alone, capture_output=True, text=True)
    assert result.stdout == '80000 Segmenter SegTTAModel\n', result.stderr
    assert '_base_' not in (alone / 'config.py').read_text()
    assert MODELS.build(Config.fromfile(alone / 'config.py').model)


# Nothing of a value runs

HOSTILE = [
    'a\nopen("canary", "w")\n#',
    'a\ropen("canary", "w")\r#',
    'a\x85open("canary", "w")\x85#',
    'a\u2028open("canary", "w")\u2029#',
    'a\x0bopen("canary", "w")\x0c#',
    '\'+open("canary", "w").name+\'',
    '"""\nopen("canary", "w")\n"""',
    '\\',
    "\\' + open('canary', 'w').name #",
    '*/ # -*- coding: utf-7 -*-',
    '{{ fileDirname }}',
    '{{{fileBasenameNoExtension}}}',
    "{{'$CANARY:x'}}",
    '{{ $CANARY:x }}',
    '{{ _base_.model }}',
    'ä \U0001f600 \u202e',
]


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_folder_names(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('CANARY', '\nopen("canary", "w")\n')
    folder = name.replace('/', '_')
    make_run(tmp_path / folder)
    convert_official_run(folder, 'out')
    listing = set(os.listdir())
    cfg = Config.fromfile('out/config.py')
    assert set(os.listdir()) == listing == {folder, 'out'}
    assert cfg.model.backbone.num_heads == 3
    comment = Path('out/config.py').read_text(encoding='utf-8').split('\n')[0]
    literal = comment.removeprefix('# Converted from the official weights ').rpartition(' by mmseg_segmenter ')[0]
    assert ast.literal_eval(literal) == os.path.join(folder, 'checkpoint.pth')


def test_hostile_folder_that_mmengine_puts_into_templates(tmp_path, monkeypatch):
    """The folder that the config is in replaces ``{{ fileDirname }}``: there must be none."""
    folder = tmp_path / 'x\nopen("canary", "w")\n#'
    make_run(tmp_path / '{{ fileDirname }}')
    monkeypatch.chdir(tmp_path)
    convert_official_run('{{ fileDirname }}', str(folder))
    Config.fromfile(folder / 'config.py')
    assert not (tmp_path / 'canary').exists()


def test_hostile_names_of_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('CANARY', '\nopen("canary", "w")\n')
    run = make_run(tmp_path / 'run', dataset='mine')
    for names in (HOSTILE[:7], HOSTILE[7:14], HOSTILE[9:16]):
        convert_official_run(str(run), 'out', force=True, classes=names)
        for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            assert Config.fromfile('out/config.py')[loader].dataset.metainfo.classes == names
    assert set(os.listdir()) == {'run', 'out'}


def test_templates_are_what_mmengine_would_replace(tmp_path):
    """The control: unescaped, they are replaced."""
    (tmp_path / 'a.py').write_text("a = '{{ fileBasenameNoExtension }}'\n")
    assert Config.fromfile(tmp_path / 'a.py').a == 'a'
    (tmp_path / 'b.py').write_text(official_config._escape_templates("a = '{{ fileBasenameNoExtension }}'\n"))
    assert Config.fromfile(tmp_path / 'b.py').a == '{{ fileBasenameNoExtension }}'
