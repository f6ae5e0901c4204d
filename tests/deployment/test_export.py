"""Exported files give the labels of the model, and what cannot be right is refused."""

import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_run import CLASSES, PALETTE, save_run, tiny_config, write_image

from mmseg_segmenter.apis import Predictor
from mmseg_segmenter.apis import export as exporter
from mmseg_segmenter.apis.export import ExportOptions, export
from mmseg_segmenter.deployment import files, packages
from mmseg_segmenter.deployment.files import load_file
from mmseg_segmenter.deployment.runtimes import load_network
from mmseg_segmenter.errors import ExistingFileError, MissingPackageError, UserError

ROOT = Path(__file__).parent.parent.parent
SUFFIXES = files.SUFFIXES
NEEDS = {'onnx': ('onnxscript', 'onnxruntime'), 'openvino': ('openvino',), 'pt2': (), 'torchscript': ()}
LINEAR = dict(_delete_=True, type='LinearHead', in_channels=16, num_classes=5)
SETR = dict(_delete_=True, type='SETRUPHead', in_channels=16, channels=8, num_convs=1, up_scale=2, num_classes=5)
SETR |= dict(norm_cfg=dict(type='BN'))
ENCODER = {'model__backbone__num_registers': 4, 'model__backbone__layer_scale': 1e-5, 'model__backbone__ffn': 'swiglu'}
CASES: dict[str, dict[str, Any]] = {
    'setr': {'model__decode_head': SETR},
    'dinov2': {**ENCODER, 'model__backbone__patch_size': 14, 'model__backbone__img_size': (56, 56)},
    'dinov3': {**ENCODER, 'model__backbone__rope': {}},
}
RUNNERS = {'onnx': 'onnxruntime', 'openvino': 'openvino', 'pt2': 'torch', 'torchscript': 'torch'}


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images and annotations for training and validation."""
    root = tmp_path_factory.mktemp('data')
    for split in ('train', 'val'):
        for i in range(3):
            write_image(root / 'images' / split / f'{i}.png', (32, 40), seed=i)
            labels = np.random.default_rng(i).integers(0, 5, (4, 5), np.uint8).repeat(8, 0).repeat(8, 1)
            (root / 'annotations' / split).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / 'annotations' / split / f'{i}.png'), labels)
    return root


@pytest.fixture(scope='module')
def predictors(tmp_path_factory: pytest.TempPathFactory, data: Path) -> dict[str, Predictor]:
    """Return models for whole images, one with each head."""
    found = {}
    for name, changes in (('mask', {'model__test_cfg__size_divisor': 8}), ('linear', {'model__decode_head': LINEAR})):
        cfg = tiny_config(mode='whole', **changes)
        for split in ('train', 'val'):
            cfg[f'{split}_dataloader'] = dict(
                dataset=dict(
                    type='BaseSegDataset',
                    data_root=str(data),
                    img_suffix='.png',
                    data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}'),
                    metainfo=dict(classes=CLASSES, palette=PALETTE),
                    pipeline=cfg.test_pipeline,
                )
            )
        run = save_run(tmp_path_factory.mktemp('run') / name, cfg)
        found[name] = Predictor(run, device='cpu')
    return found


def needs(format: str) -> None:
    for package in NEEDS[format]:
        pytest.importorskip(package)


def assert_same_labels(predictor: Predictor, labels: np.ndarray, rgb: np.ndarray) -> None:
    """Compare labels with those of the Predictor, where its two highest probabilities are not equal."""
    prediction = predictor.predict(rgb, channel_order='rgb')
    top = np.sort(prediction.probabilities, axis=0)
    clear = top[-1] - top[-2] > 1e-4
    assert clear.mean() > 0.9
    assert np.array_equal(labels[clear], prediction.labels[clear])
    assert len(np.unique(labels)) > 1


def image_of(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize('head', ['mask', 'linear'])
@pytest.mark.parametrize('format', list(SUFFIXES))
def test_labels_are_those_of_the_predictor(
    predictors: dict[str, Predictor], tmp_path: Path, format: str, head: str
) -> None:
    """At a size that is not a whole number of patches."""
    needs(format)
    predictor, out = predictors[head], str(tmp_path / 'folder' / f'model{SUFFIXES[format]}')
    image = write_image(tmp_path / 'image.png')
    result = export(predictor, out, ExportOptions(format, size=(37, 51)), [str(image)])
    assert sorted(os.listdir(tmp_path / 'folder')) == sorted(os.path.basename(file) for file in result.files)
    assert result.agreement is not None and result.agreement.equal > 0.99
    rgb = image_of((37, 51))
    labels = load_file(out, format, 'fp32')(rgb[None])
    assert labels.shape == (1, 37, 51)
    assert labels.dtype == np.uint8
    assert_same_labels(predictor, labels[0], rgb)


@pytest.mark.parametrize('format', ['onnx', 'openvino', 'pt2'])
def test_one_file_for_images_of_any_size(predictors: dict[str, Predictor], tmp_path: Path, format: str) -> None:
    needs(format)
    out = str(tmp_path / f'model{SUFFIXES[format]}')
    export(predictors['mask'], out, ExportOptions(format, dynamic=True))
    run = load_file(out, format, 'fp32')
    for size in ((32, 32), (48, 64), (37, 51)):
        rgb = image_of(size)
        labels = run(np.stack((rgb, rgb[::-1])))
        assert_same_labels(predictors['mask'], labels[0], rgb)
        assert_same_labels(predictors['mask'], labels[1], np.ascontiguousarray(rgb[::-1]))


@pytest.mark.parametrize('format', ['onnx', 'openvino'])
def test_logits_of_normalised_images(predictors: dict[str, Predictor], tmp_path: Path, format: str) -> None:
    needs(format)
    predictor, out = predictors['linear'], str(tmp_path / f'model{SUFFIXES[format]}')
    export(predictor, out, ExportOptions(format, argmax=False, normalise=False), [str(write_image(tmp_path / 'i.png'))])
    images = torch.randn(1, 3, 32, 32)
    logits = load_file(out, format, 'fp32')(images.numpy())
    with torch.no_grad():
        (expected,) = predictor.model.logit_maps(images)
    np.testing.assert_allclose(logits[0], expected.full().numpy(), atol=1e-4)


@pytest.mark.parametrize('format', list(SUFFIXES))
def test_examples_run_files(
    predictors: dict[str, Predictor], tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The examples use the metadata of the file, and nothing of this package."""
    needs(format)
    image, out, picture = tmp_path / 'image.png', tmp_path / f'model{SUFFIXES[format]}', tmp_path / 'out.png'
    Image.fromarray(image_of((32, 32))).save(image)
    export(predictors['mask'], str(out), ExportOptions(format))
    example = ROOT / 'tools/deployment/examples' / f'run_{RUNNERS[format]}.py'
    assert 'mmseg' not in ''.join(line for line in example.read_text().splitlines() if 'import' in line)
    monkeypatch.setattr(sys, 'argv', [str(example), str(out), str(image), str(picture)])
    runpy.run_path(str(example), run_name='__main__')
    mask = Image.open(picture)
    assert_same_labels(predictors['mask'], np.asarray(mask), image_of((32, 32)))
    assert np.array_equal(np.array(mask.getpalette()).reshape(-1, 3)[:5], PALETTE)
    assert '%' in capsys.readouterr().out


@pytest.mark.parametrize(('format', 'precision'), [('pt2', 'fp16'), ('torchscript', 'bf16'), ('openvino', 'bf16')])
def test_half_precision_halves_the_file(
    predictors: dict[str, Predictor], tmp_path: Path, format: str, precision: str
) -> None:
    needs(format)
    image = str(write_image(tmp_path / 'image.png'))
    out = str(tmp_path / f'model{SUFFIXES[format]}')
    result = export(predictors['linear'], out, ExportOptions(format, precision), [image])
    assert result.agreement is not None and 0.9 < result.agreement.equal <= 1


@pytest.mark.parametrize(
    ('format', 'operator'),
    [('openvino', b'FakeQuantize'), pytest.param('onnx', b'QuantizeLinear', marks=pytest.mark.slow)],
)
def test_int8_tells_the_scores(predictors: dict[str, Predictor], tmp_path: Path, format: str, operator: bytes) -> None:
    needs(format)
    pytest.importorskip('nncf')
    out = str(tmp_path / f'model{SUFFIXES[format]}')
    result = export(predictors['linear'], out, ExportOptions(format, 'int8'), max_drop=100)
    assert result.scores is not None
    assert all(0 < score < 100 for score in result.scores)
    assert operator in Path(out).read_bytes()


@pytest.mark.slow
def test_onnx_int8_keeps_the_head_in_float(
    predictors: dict[str, Predictor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If int8 of all layers loses too much; here the first file is said to."""
    onnxruntime = pytest.importorskip('onnxruntime')
    pytest.importorskip('nncf')
    scores = iter((50.0, 40.0, 49.9))
    monkeypatch.setattr(exporter._Validation, 'score', lambda *_: next(scores))
    out = str(tmp_path / 'model.onnx')
    result = export(predictors['mask'], out, ExportOptions('onnx', 'int8', dynamic=True))
    assert result.scores == (50.0, 49.9)
    # A projection, two of attention, two of feed-forward, two by the tokens of classes and patches, and the masks.
    assert result.kept > 5
    import onnx

    graph = onnx.load(out).graph
    made = {name: node for node in graph.node for name in node.output}
    layers = [node for node in graph.node if node.op_type in ('MatMul', 'Gemm', 'Conv')]
    quantised = [
        any(made[name].op_type == 'DequantizeLinear' for name in node.input if name in made) for node in layers
    ]
    assert any(quantised[: -result.kept])
    assert not any(quantised[-result.kept :])
    session = onnxruntime.InferenceSession(out)
    rgb = image_of((48, 64))
    (labels,) = session.run(['labels'], {'image': rgb[None]})
    prediction = predictors['mask'].predict(rgb, channel_order='rgb')
    assert (labels[0] == prediction.labels).mean() > 0.7


@pytest.mark.slow
def test_predictor_runs_an_int8_file_of_one_size(predictors: dict[str, Predictor], tmp_path: Path) -> None:
    needs('openvino')
    pytest.importorskip('nncf')
    out, predictor = str(tmp_path / 'network.xml'), predictors['linear']
    options = ExportOptions('openvino', 'int8', argmax=False, normalise=False)
    export(predictor, out, options, max_drop=100)
    import openvino

    assert openvino.Core().read_model(out).inputs[0].partial_shape.is_static
    cfg, checkpoint = predictor.cfg, predictor.checkpoint
    quantised = Predictor(cfg, checkpoint, device='cpu', runtime='openvino', precision='int8', network=out)
    image = image_of((32, 32))
    (expected,), (found,) = predictor([image]), quantised([image])
    assert (found.labels == expected.labels).mean() > 0.7


def test_int8_logits_of_a_network_for_any_size_are_close(predictors: dict[str, Predictor], tmp_path: Path) -> None:
    needs('openvino')
    pytest.importorskip('nncf')
    out, predictor = str(tmp_path / 'network.xml'), predictors['linear']
    options = ExportOptions('openvino', 'int8', argmax=False, normalise=False, dynamic=True)
    export(predictor, out, options, max_drop=100)
    network = load_network(predictor.model, 'openvino', 'int8', out)
    data = predictor.model.data_preprocessor(dict(inputs=[torch.from_numpy(image_of((32, 32))).permute(2, 0, 1)]))
    images = data['inputs']
    with torch.no_grad():
        expected = F.interpolate(predictor.model.head_logits(images), (32, 32), mode='bilinear')
    assert (network(images) - expected).std() < 0.1 * expected.std()


@pytest.mark.slow
def test_int8_that_loses_too_much_is_refused(predictors: dict[str, Predictor], tmp_path: Path) -> None:
    needs('openvino')
    pytest.importorskip('nncf')
    out = str(tmp_path / 'model.xml')
    with pytest.raises(UserError, match='also with the head in floating point; expected at most -100'):
        export(predictors['linear'], out, ExportOptions('openvino', 'int8'), max_drop=-100)
    assert not list(tmp_path.iterdir())


def test_a_head_that_cannot_have_any_size_is_refused(make_predictor: Callable[..., Predictor], tmp_path: Path) -> None:
    """mmseg's Upsample turns a size into an int, which is a constant in the graph."""
    predictor = make_predictor(mode='whole', model__decode_head=dict(SETR, up_scale=1.5))
    with pytest.raises(
        UserError,
        match='--dynamic: with SegmenterViT and SETRUPHead the file does not work at all sizes, such as 24x40',
    ):
        export(predictor, str(tmp_path / 'model.pt2'), ExportOptions('pt2', dynamic=True))
    assert not (tmp_path / 'model.pt2').exists()


@pytest.mark.slow
@pytest.mark.parametrize('format', ['onnx', 'openvino', 'pt2'])
@pytest.mark.parametrize('case', ['setr', 'dinov2', 'dinov3'])
def test_other_heads_and_encoders_at_any_size(
    make_predictor: Callable[..., Predictor], tmp_path: Path, case: str, format: str
) -> None:
    needs(format)
    predictor, out = make_predictor(mode='whole', **CASES[case]), str(tmp_path / f'model{SUFFIXES[format]}')
    image = str(write_image(tmp_path / 'image.png'))
    export(predictor, out, ExportOptions(format, dynamic=True), [image])
    rgb = image_of((57, 90))
    assert_same_labels(predictor, load_file(out, format, 'fp32')(rgb[None])[0], rgb)


def test_a_file_that_differs_is_refused(
    predictors: dict[str, Predictor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = files.pt2.save

    def damaged(program: Any, path: str, metadata: dict[str, str]) -> None:
        weight = next(value for name, value in program.state_dict.items() if name.endswith('conv_seg.weight'))
        weight.data.neg_()
        save(program, path, metadata)

    monkeypatch.setattr(files.pt2, 'save', damaged)
    image, out = str(write_image(tmp_path / 'image.png')), tmp_path / 'out' / 'model.pt2'
    with pytest.raises(UserError, match=r'the exported network differs from the model: .* expected 0.001 standard'):
        export(predictors['linear'], str(out), ExportOptions('pt2'), [image])
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('a.pt', ExportOptions('onnx'), r'a\.pt; expected the name of a file that ends in \.onnx'),
        ('a.onnx', ExportOptions('tflite'), "format='tflite'; expected one of onnx, openvino, pt2, torchscript"),
        ('a.onnx', ExportOptions('onnx', 'bf16'), "precision='bf16' with format='onnx'; expected one of fp32, fp16"),
        ('a.pt', ExportOptions('torchscript', 'int8'), "precision='int8' with format='torchscript'"),
        ('a.pt', ExportOptions('torchscript', dynamic=True), 'a traced graph has one size; use onnx, openvino or pt2'),
    ],
)
def test_wrong_options(
    predictors: dict[str, Predictor], tmp_path: Path, name: str, options: ExportOptions, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        export(predictors['mask'], str(tmp_path / name), options)
    assert not list(tmp_path.iterdir())


def test_existing_files_are_kept(predictors: dict[str, Predictor], tmp_path: Path) -> None:
    for name, format in (('a.pt2', 'pt2'), ('a.bin', 'openvino')):
        (tmp_path / name).write_text('mine')
        out = str(tmp_path / f'a{SUFFIXES[format]}')
        with pytest.raises(ExistingFileError, match=f'{name} exists; use --force'):
            export(predictors['mask'], out, ExportOptions(format))
        assert (tmp_path / name).read_text() == 'mine'


def test_missing_packages(predictors: dict[str, Predictor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, 'find_spec', lambda _: None)
    with pytest.raises(MissingPackageError, match=r"run pip install 'mmseg_segmenter\[onnx\]'"):
        export(predictors['mask'], str(tmp_path / 'a.onnx'), ExportOptions('onnx'))
    with pytest.raises(MissingPackageError, match=r"run pip install 'mmseg_segmenter\[openvino\]'"):
        export(predictors['mask'], str(tmp_path / 'a.xml'), ExportOptions('openvino', 'int8'))


def test_int8_without_images(make_predictor: Callable[..., Predictor], tmp_path: Path) -> None:
    needs('openvino')
    pytest.importorskip('nncf')
    with pytest.raises(UserError, match='has no train_dataloader; give calibration images'):
        export(make_predictor(), str(tmp_path / 'a.xml'), ExportOptions('openvino', 'int8'))
    assert not (tmp_path / 'a.xml').exists()


@pytest.fixture
def make_predictor(tmp_path: Path) -> Callable[..., Predictor]:
    return lambda **changes: Predictor(save_run(tmp_path / 'run', tiny_config(**changes)), device='cpu')


def test_command_line(
    predictors: dict[str, Predictor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    image, out = write_image(tmp_path / 'image.png'), tmp_path / 'model.pt2'
    run = Path(predictors['linear'].checkpoint).parent
    command = ['export.py', str(run / 'config.py'), str(run / 'model.pth'), str(out), '--format', 'pt2']
    tool = str(ROOT / 'tools/deployment/export.py')
    monkeypatch.setattr(sys, 'argv', [*command, '--size', '40x56', '--check', str(image)])
    runpy.run_path(tool, run_name='__main__')
    assert 'image (1, 40, 56, 3) uint8 RGB -> labels (1, 40, 56)' in capsys.readouterr().out
    extra = {'classes': ''}
    torch.export.load(out, extra_files=extra)
    assert 'person' in extra['classes']
    for arguments, message in (
        (['--size', '40'], 'exists; use --force'),
        (['--size', '0x3'], '--size 0x3; expected'),
    ):
        monkeypatch.setattr(sys, 'argv', [*command, *arguments])
        with pytest.raises(SystemExit, match=message):
            runpy.run_path(tool, run_name='__main__')
