"""Whatever runs a model whose weights hold NaN refuses: argmax would make a class of its logits."""

import importlib.util
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import save_run, tiny_config, write_image

from mmseg_segmenter.apis import InputImage, Predictor
from mmseg_segmenter.apis.export import ExportOptions, export
from mmseg_segmenter.apis.inputs import Task
from mmseg_segmenter.apis.outputs import OutputSpec
from mmseg_segmenter.apis.pipeline import Pipeline
from mmseg_segmenter.apis.raster import segment_raster
from mmseg_segmenter.apis.strips import segment_strips
from mmseg_segmenter.apis.video import segment_video
from mmseg_segmenter.app import Models
from mmseg_segmenter.deployment import HeadLogits, runtimes, to_onnx, trace
from mmseg_segmenter.engine.precision import cpu_has_bfloat16
from mmseg_segmenter.errors import UserError

ROOT = Path(__file__).parent.parent.parent
MESSAGE = 'the logits of the model are not finite'
LINEAR = dict(_delete_=True, type='LinearHead', in_channels=16, num_classes=5)


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run whose checkpoint has NaN in one weight, of one class."""
    folder = save_run(tmp_path_factory.mktemp('run'), tiny_config(model__decode_head=LINEAR))
    checkpoint = torch.load(folder / 'model.pth')
    checkpoint['state_dict']['decode_head.conv_seg.bias'][2] = torch.nan
    torch.save(checkpoint, folder / 'model.pth')
    write_image(folder / 'images' / 'a.png')
    return folder


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(cfg_options={'model.test_cfg.mode': 'whole'}),
        dict(tta=True),
        dict(window_batch_size=1),
        pytest.param(dict(amp='bf16'), marks=pytest.mark.skipif(not cpu_has_bfloat16(), reason='needs bfloat16')),
        pytest.param(dict(compile=True), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_images(folder: Path, options: dict[str, Any]) -> None:
    predictor = Predictor(folder, device='cpu', **options)
    with pytest.raises(UserError, match=rf'a\.png: {MESSAGE}'):
        list(predictor([folder / 'images' / 'a.png'] * 2, batch_size=2))


def test_large_images(folder: Path, tmp_path: Path) -> None:
    """Strips, rasters, videos and the page."""
    predictor, pixels = Predictor(folder, device='cpu'), np.zeros((80, 40, 3), np.uint8)
    with pytest.raises(UserError, match=f'rows 0 to 32: {MESSAGE}'):
        list(segment_strips(predictor.model, (80, 40), lambda top, bottom: pixels[top:bottom]))
    frames = [Image.fromarray(pixels + i) for i in range(2)]
    frames[0].save(tmp_path / 'a.gif', save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match=MESSAGE):
        segment_video(
            predictor, Task(str(tmp_path / 'a.gif'), 'a', 'animation'), OutputSpec(str(tmp_path / 'out'), ('mask',)),
            2, lambda _: None,
        )  # fmt: skip
    with pytest.raises(UserError, match=MESSAGE):
        Models([predictor]).segment(InputImage(pixels, 'a'))
    if importlib.util.find_spec('rasterio'):
        frames[0].save(tmp_path / 'a.tif')
        with pytest.raises(UserError, match=MESSAGE):
            segment_raster(predictor, str(tmp_path / 'a.tif'), str(tmp_path / 'out.tif'))
    assert not [path for path in tmp_path.rglob('*') if path.is_file() and path.name not in ('a.gif', 'a.tif')]


def test_one_image_fails_alone(folder: Path, tmp_path: Path) -> None:
    """What predict.py does with each image: the error is in its row, and nothing is written."""
    outputs = OutputSpec(str(tmp_path / 'out'), ('mask', 'overlay'))
    task = Task(str(folder / 'images' / 'a.png'), 'a', 'image')
    (result,) = Pipeline(Predictor(folder, device='cpu'), outputs).run([task])
    assert result.status == 'failed' and MESSAGE in result.error and not list(tmp_path.rglob('*.png'))


@pytest.fixture(scope='module')
def network(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the network of the run as a file of ONNX."""
    for package in ('onnx', 'onnxscript', 'onnxruntime', 'openvino'):
        pytest.importorskip(package)
    dynamic = {0: 'batch', 2: 'height', 3: 'width'}
    path = tmp_path_factory.mktemp('network') / 'network.onnx'
    program = trace(HeadLogits(Predictor(folder, device='cpu').model), torch.zeros(2, 3, 32, 32), dynamic)
    to_onnx(program, 'logits', dynamic).save(path)
    return path


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize('runtime', ['onnxruntime', 'openvino'])
def test_runtimes(folder: Path, network: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, precision: str) -> None:
    if precision == 'bf16' and (runtime == 'onnxruntime' or not cpu_has_bfloat16()):
        pytest.skip('not of this runtime or CPU')
    options: dict[str, Any] = dict(runtime=runtime, precision=precision, network=network)
    with pytest.raises(UserError, match=f'black image: {MESSAGE}'):
        Predictor(folder, **options)
    for check in ('_check_model', '_check_weights'):  # as if only this image had such logits
        monkeypatch.setattr(runtimes, check, lambda *_: None)
    with pytest.raises(UserError, match=rf'a\.png: {MESSAGE}'):
        Predictor(folder, **options).predict(folder / 'images' / 'a.png')


def test_export(folder: Path, tmp_path: Path) -> None:
    predictor = Predictor(folder, device='cpu', cfg_options={'model.test_cfg.mode': 'whole'})
    with pytest.raises(UserError, match=f'black image: {MESSAGE}'):
        export(predictor, str(tmp_path / 'model.pt2'), ExportOptions('pt2', size=(32, 32)))
    assert not list(tmp_path.iterdir())


def test_test_tool(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / 'data' / 'a.jpg')
    monkeypatch.chdir(tmp_path)
    Image.new('L', (56, 40)).save(tmp_path / 'data' / 'a.png')
    arguments: list[Callable[[], Any] | Any] = [
        'test.py', folder / 'config.py', folder / 'model.pth', '--work-dir', tmp_path / 'run', '--cfg-options',
        f'test_dataloader.dataset.data_root={tmp_path}', 'test_dataloader.dataset.data_prefix.img_path=data',
        'test_dataloader.dataset.data_prefix.seg_map_path=data', 'test_cfg.type=TestLoop',
        'test_evaluator.type=IoUMetric',
    ]  # fmt: skip
    monkeypatch.setattr(sys, 'argv', [str(argument) for argument in arguments])
    with pytest.raises(SystemExit, match=rf'a\.jpg: {MESSAGE}'):
        runpy.run_path(str(ROOT / 'tools' / 'test.py'), run_name='__main__')
