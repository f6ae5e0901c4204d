"""Every tool takes any name that a file can have, and none of it reaches a shell, a pattern or a format string."""

import contextlib
import os
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.registry import MODELS
from PIL import Image
from torch.distributed.checkpoint.state_dict_saver import save

from mmseg_segmenter.datasets.shapes import make_shapes

ROOT = Path(__file__).parent.parent
TOOLS = ROOT / 'tools'
# Of a folder, and of the files in it. The first begins with a dash, both would run a command in a shell.
FOLDER = '-a b\n\'c" $(touch hacked) `touch hacked` ; touch hacked # %s %d {x} {{ y }} [1] * ü 图 \\n &'
STEM = '-%(x)s é [ab]* $(touch hacked)'
CONFIG = """
_base_ = {base!r}
data_root = {data!r}
model = dict(
    data_preprocessor=dict(size=(36, 36)),
    backbone=dict(img_size=(36, 36), embed_dims=64, num_layers=1, num_heads=1),
    decode_head=dict(in_channels=64, embed_dims=64, num_layers=1, num_heads=1),
    auxiliary_head=None,
    test_cfg=dict(crop_size=(36, 36), stride=(12, 12)),
)
train_pipeline = [
    dict(type='LoadImage'), dict(type='LoadLabelMap', reduce_zero_label=True),
    dict(type='RandomCrop', crop_size=(36, 36)), dict(type='PackSegInputs'),
]
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False,
                        dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))
env_cfg = dict(cudnn_benchmark=False)
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images, a config, checkpoints and a run."""
    folder = tmp_path_factory.mktemp('names') / FOLDER
    make_shapes(str(folder / 'data'), num_images=10, size=(40, 40))
    for path in list((folder / 'data').rglob('*.*')):
        if path.is_file():
            path.rename(path.with_name(f'{STEM} {path.name}'))
    base = str(ROOT / 'configs' / 'segmenter' / 'segmenter_demo_1xb16-1200_shapes.py')
    config = folder / f'{STEM}.py'
    config.write_text(CONFIG.format(base=base, data=str(folder / 'data')))
    torch.manual_seed(0)
    state = MODELS.build(Config.fromfile(config).model).state_dict()
    torch.save(dict(state_dict=state, meta={}), folder / f'{STEM}.pth')
    save({f'model.{name}': value for name, value in state.items()}, checkpoint_id=folder / 'shards', no_dist=True)
    torch.save(dict(meta=dict(param_groups=[], state_dict_metadata={})), folder / 'shards' / 'meta.pth')
    (folder / 'rgb').mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / 'rgb' / f'{STEM}.png')
    (folder / f'{STEM}.txt').write_text('0 0 0 black\n')
    shutil.copy(Path(__file__).parent / 'data' / 'augreg_tiny_i21k.npz', folder / f'{STEM}.npz')
    return folder


@contextlib.contextmanager
def ends_well() -> Iterator[None]:
    """Fail at an exit code other than 0."""
    try:
        yield
    except SystemExit as stop:
        if stop.code:
            pytest.fail(str(stop.code))


@pytest.fixture
def call(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Return a function that runs a tool in the parent of the folder, with relative paths that go up and down."""
    monkeypatch.chdir(folder.parent)
    before = set(os.listdir(folder.parent))

    def run(tool: str, *arguments: str) -> None:
        monkeypatch.setattr(sys, 'argv', [tool, *arguments])
        with ends_well():
            runpy.run_path(str(TOOLS / tool), run_name='__main__')

    yield run
    assert set(os.listdir(folder.parent)) == before


P = f'./{FOLDER}/../{FOLDER}'
MODEL = (f'{P}/{STEM}.py', f'{P}/{STEM}.pth')
IMAGES = f'{P}/data/images/validation'
CASES = {
    'check_dataset': [
        ('analysis_tools/check_dataset.py', MODEL[0], '--workers=1', f'--json={P}/out/{STEM}.json',
         f'--plot={P}/out/{STEM}.png'),
    ],
    'browse_dataset': [('analysis_tools/browse_dataset.py', MODEL[0], f'--out={P}/out/{STEM}.sheet.png', '--number=1')],
    'train': [
        ('train.py', MODEL[0], f'--work-dir={P}/out/run'),
        ('analysis_tools/analyze_logs.py', f'{P}/out/run', f'--out={P}/out/{STEM}.log.png'),
    ],
    'test': [('test.py', *MODEL, f'--work-dir={P}/out/test', f'--out={P}/out/labels', f'--show-dir={P}/out/shown')],
    'predict': [('predict.py', *MODEL, IMAGES, f'--out={P}/out/all', '--outputs=mask,overlay', '--device=cpu')],
    'browse_predictions': [
        ('analysis_tools/browse_predictions.py', *MODEL, f'--out={P}/out/{STEM}.p.png', '--number=1'),
    ],
    'confusion_matrix': [
        ('analysis_tools/confusion_matrix.py', *MODEL, f'--out={P}/out/{STEM}.c.png', f'--work-dir={P}/out/confusion'),
    ],
    'attention_maps': [
        ('analysis_tools/attention_maps.py', *MODEL, f'{P}/rgb/{STEM}.png', f'--out={P}/out/{STEM}.a.png', '--cls',
         '--device=cpu'),
    ],
    'benchmark': [
        ('analysis_tools/benchmark.py', MODEL[0], '--size=36x36', '--repeat=1', '--no-memory',
         f'--json={P}/out/{STEM}.b.json', f'--plot={P}/out/{STEM}.b.png'),
    ],
    'datasets': [
        ('dataset_converters/make_shapes.py', f'{P}/out/{STEM}', '--images=5', '--size=32x32'),
        ('dataset_converters/rgb2labels.py', f'{P}/rgb', f'{P}/out/{STEM} labels', f'--palette={P}/{STEM}.txt'),
    ],
    'export': [
        ('deployment/export.py', *MODEL, f'{P}/out/{STEM}.pt', '--format=torchscript', '--check',
         f'{P}/rgb/{STEM}.png'),
    ],
    'converters': [
        ('model_converters/mmseg2segm.py', *MODEL, f'{P}/out/{STEM} segm/checkpoint.pth'),
        ('model_converters/segm2mmseg.py', f'{P}/out/{STEM} segm/checkpoint.pth', f'{P}/out/{STEM}.back.pth'),
        ('model_converters/sharded2mmseg.py', f'{P}/shards', f'{P}/out/{STEM}.whole.pth'),
        ('model_converters/vit2mmseg.py', f'{P}/{STEM}.npz', f'{P}/out/{STEM}.vit.pth'),
    ],
}  # fmt: skip
SLOW = ('train', 'test', 'confusion_matrix', 'attention_maps', 'benchmark', 'export')
# Folders that have a file for each image.
RESULTS = {'test': ('labels', 'shown'), 'predict': ('all/mask', 'all/overlay')}


@pytest.mark.parametrize('name', [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in CASES])
def test_tools(call: Callable[..., None], folder: Path, name: str) -> None:
    def written() -> set[Path]:
        return set((folder / 'out').rglob('*'))

    for command in CASES[name]:
        before = written()
        call(*command)
        assert written() > before
    images = {path.stem for path in (folder / 'data' / 'images' / 'validation').iterdir()}
    assert images and all('hacked' in image for image in images)
    for results in RESULTS.get(name, ()):
        assert {path.stem for path in (folder / 'out' / results).iterdir()} == images
