"""The figures of attention, features and classes, as a user asks for them."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from PIL import Image
from torch.testing import assert_close

from mmseg_segmenter.analysis.inspection import encoder_attention, figures, network_image
from mmseg_segmenter.apis import Predictor
from mmseg_segmenter.errors import UserError

TOOL = Path(__file__).parents[2] / 'tools' / 'analysis_tools' / 'attention_maps.py'
CLASSES = ('car', 'road', 'sky', 'tree', 'wall')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A config, a checkpoint and an image."""
    folder = tmp_path_factory.mktemp('model')
    init_default_scope('mmseg')
    transforms = [
        dict(type='LoadImageFromFile'), dict(type='Resize', scale=(96, 64), keep_ratio=True),
        dict(type='PackSegInputs'),
    ]  # fmt: skip
    model = dict(
        type='Segmenter',
        data_preprocessor=dict(type='SegDataPreProcessor'),
        backbone=dict(
            type='SegmenterViT', img_size=32, patch_size=16, embed_dims=24, num_layers=2, num_heads=3, final_norm=True
        ),
        decode_head=dict(
            type='SegmenterMaskTransformerHead', in_channels=24, embed_dims=24, num_heads=3, num_layers=1, num_classes=5
        ),
        test_cfg=dict(mode='whole'),
    )
    cfg = Config(dict(default_scope='mmseg', model=model, test_dataloader=dict(dataset=dict(pipeline=transforms))))
    cfg.custom_imports = dict(imports=['mmseg_segmenter'], allow_failed_imports=False)
    cfg.dump(folder / 'model.py')
    built = MODELS.build(model)
    built.init_weights()
    meta = dict(dataset_meta=dict(classes=CLASSES, palette=[[i, i, i] for i in range(5)]))
    torch.save(dict(state_dict=built.state_dict(), meta=meta), folder / 'model.pth')
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (70, 120, 3), dtype=np.uint8)).save(folder / 'image.png')
    return folder


@pytest.fixture
def tool(folder, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(
            sys,
            'argv',
            ['attention_maps.py', str(folder / 'model.py'), str(folder / 'model.pth'), *map(str, arguments)],
        )
        runpy.run_path(str(TOOL), run_name='__main__')
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    'options',
    [
        ['--patch', '3,60', '--layer', '0', '--head', 'all'],
        ['--cls', '--head', '2'],
        ['--cls', '--rollout'],
        ['--class', 'sky'],
        ['--class', 'sky', '--rollout'],
        ['--similarity', '119,69', '--layer', '0'],
        ['--pca'],
    ],
)
def test_every_figure_is_drawn(folder, tool, tmp_path, options):
    tool(folder / 'image.png', '--out', tmp_path / 'new' / 'a.png', *options)
    with Image.open(tmp_path / 'new' / 'a.png') as picture:
        pixels = np.asarray(picture.convert('RGB'))
    assert picture.width > 500 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000


def test_distances_and_classes_are_plotted(folder, tool, tmp_path):
    out = tool(folder / 'image.png', '--out', tmp_path / 'a.svg', '--distance')
    assert 'layer  1:' in out and (tmp_path / 'a.svg').read_text().startswith('<?xml')
    tool('--out', tmp_path / 'b.png', '--class-similarity')
    assert (tmp_path / 'b.png').stat().st_size > 5000


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--patch', '120,3'], 'pixel 120,3 is outside .*image.png; expected x from 0 to 119 and y from 0 to 69'),
        (['--cls', '--layer', '2'], 'layer=2; expected 0 to 1'),
        (['--cls', '--head', '3'], 'head=3; expected 0 to 2, mean or all'),
        (['--class', 'Sky '], "no class 'Sky '; expected 'sky'"),
        (['--class', 'xyz'], "no class 'xyz'; expected one of car, road, sky, tree, wall"),
    ],
)
def test_wrong_options_are_one_line(folder, tool, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message) as end:
        tool(folder / 'image.png', '--out', tmp_path / 'a.png', *options)
    assert '\n' not in end.value.code and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['x.png', '--out', 'a.png', '--cls'], 'x.png not found'),
        (['x.png', '--out', 'a.txt', '--cls'], 'out=a.txt; expected a name that ends in .png'),
    ],
)
def test_wrong_files_are_one_line(tool, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        tool(*arguments)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--cls'], 'expected an image after the checkpoint'),
        (['a.png', '--class-similarity'], '--class-similarity takes no image'),
        (['a.png', 'b.png', '--cls'], 'expected one image, found 2; only --distance takes several'),
        (['a.png', '--pca', '--rollout'], '--rollout needs --patch, --cls, --class or --query'),
        (['a.png', '--pca', '--head', '1'], '--head needs --patch, --cls, --class or --query'),
        (['a.png', '--distance', '--layer', '0'], '--layer needs'),
        (['a.png', '--cls', '--head', '1', '--rollout'], '--head 1 with --rollout, which averages over the heads'),
        (['a.png', '--patch', '3'], "'3'; expected X,Y in pixels"),
        (['a.png', '--cls', '--pca'], 'not allowed with'),
    ],
)
def test_usage_errors(tool, capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        tool('--out', 'a.png', *arguments)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_help_has_examples():
    text = subprocess.run([sys.executable, TOOL, '--help'], capture_output=True, text=True, check=True).stdout
    assert 'attention_maps.py CONFIG CHECKPOINT street.jpg --out a.png --patch 300,220' in text


def test_pixels_and_patches_fit_together(folder):
    """Also where the network gets a resized and padded image."""
    predictor = Predictor(folder / 'model.py', folder / 'model.pth')
    seen = network_image(predictor, folder / 'image.png')  # 120x70 pixels, resized to 96x56: 4x6 patches
    assert seen.grid == (4, 6) and seen.inputs.shape[2:] == (56, 96)
    for x, y in ((0, 0), (119, 69), (61, 33)):
        box = seen.box_of(seen.patch_at(x, y))
        assert box.left <= x + 0.5 <= box.left + box.width and box.top <= y + 0.5 <= box.top + box.height
    maps = torch.zeros(1, 4, 6)
    maps[0, 1, 4] = 1
    y, x = divmod(int(seen.on_image(maps).argmax()), 120)
    assert seen.patch_at(x, y) == (1, 4)
    assert figures.class_number(CLASSES, 'tree') == 3


def test_the_example_of_the_documentation(folder):
    text = (TOOL.parents[2] / 'docs' / 'attention.md').read_text(encoding='utf-8')
    names: dict = {}
    exec(re.search(r'```python\n(.*?)```', text, re.S)[1], names)
    predictor = Predictor(folder / 'model.py', folder / 'model.pth', device='cpu')
    weights = names['attention_of_pixel'](predictor, str(folder / 'image.png'), 119, 69)
    seen = network_image(predictor, folder / 'image.png')
    expected = encoder_attention(predictor.model, seen.inputs)[0, :, -1, -24:].unflatten(1, (4, 6))
    assert_close(weights, expected, atol=1e-6, rtol=0)


def test_no_class_token(folder, tmp_path):
    predictor = Predictor(
        folder / 'model.py', folder / 'model.pth', device='cpu', cfg_options={'model.backbone.with_cls_token': False}
    )
    with pytest.raises(UserError, match='the backbone SegmenterViT has no class token in its blocks'):
        figures.save_attention(
            str(tmp_path / 'a.png'), predictor, folder / 'image.png', figures.Subject(class_token=True)
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(('height', 'width'), [(300, 40), (40, 300)])
def test_figures_of_long_images_fit_a_screen(folder, tmp_path, height, width):
    predictor = Predictor(folder / 'model.py', folder / 'model.pth', device='cpu')
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    figures.save_attention(str(tmp_path / 'a.png'), predictor, image, figures.Subject(pixel=(30, 30)), head='all')
    with Image.open(tmp_path / 'a.png') as picture:
        assert 300 < picture.width < 2200 and 150 < picture.height < 2200
