"""A Predictor gives the same labels whatever runs its network."""

import threading

import numpy as np
import pytest
import torch
from mmseg.models.decode_heads import FCNHead
from tiny_run import CLASSES, PALETTE, save_run, tiny_config, write_image

from mmseg_segmenter.apis import Predictor
from mmseg_segmenter.deployment import HeadLogits, to_onnx, trace
from mmseg_segmenter.errors import MissingFileError, MissingPackageError, UserError

RUNTIMES = ['onnxruntime', 'openvino']
SIZES = [(40, 56), (33, 71), (64, 32)]
CASES = {
    'slide': {},
    'whole': dict(mode='whole'),
    'padding': dict(model__test_cfg__size_divisor=8, model__test_cfg__upscale_small=True),
    'setr': dict(
        model__decode_head=dict(
            _delete_=True,
            type='SETRUPHead',
            in_channels=16,
            channels=8,
            num_convs=1,
            up_scale=2,
            num_classes=5,
            norm_cfg=dict(type='BN'),
        ),
    ),
    'linear': dict(model__decode_head=dict(_delete_=True, type='LinearHead', in_channels=16, num_classes=5)),
    'fcn': dict(
        model__type='EncoderDecoder',
        model__decode_head=dict(
            _delete_=True, type='FCNHead', in_channels=16, channels=8, num_convs=1, concat_input=False, num_classes=5
        ),
    ),
}


@pytest.fixture(autouse=True)
def packages():
    for name in ('onnx', 'onnxscript', 'onnxruntime', 'openvino'):
        pytest.importorskip(name)


@pytest.fixture(scope='module')
def run_folder(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp('run'), tiny_config())


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    return [write_image(folder / f'{i}.png', size, i) for i, size in enumerate(SIZES)]


@pytest.fixture(scope='module')
def onnx_file(run_folder, tmp_path_factory):
    """Return the network of the run, for images of any size."""
    model = Predictor(run_folder, device='cpu').model
    dynamic = {0: 'batch', 2: 'height', 3: 'width'}
    path = tmp_path_factory.mktemp('network') / 'network.onnx'
    to_onnx(trace(HeadLogits(model), torch.zeros(2, 3, 32, 32), dynamic), 'logits', dynamic).save(path)
    return path


@pytest.fixture(params=RUNTIMES)
def predictor(request, run_folder, onnx_file):
    """Return a predictor whose network another runtime runs."""
    return Predictor(run_folder, runtime=request.param, network=onnx_file)


def assert_equal_labels(one, other, images):
    for a, b in zip(one(images), other(images), strict=True):
        assert len(np.unique(a.labels)) > 1  # the comparison means something
        assert np.array_equal(a.labels, b.labels)
        assert np.abs(a.probabilities.astype(float) - b.probabilities).max() < 2e-3  # float16


@pytest.mark.parametrize(
    ('case', 'runtime'), [('slide', 'onnxruntime'), *((case, 'openvino') for case in CASES if case != 'slide')]
)
def test_labels_are_those_of_torch(tmp_path, files, case, runtime):
    """Images of several sizes; the last batch of windows is smaller than the others."""
    folder = save_run(tmp_path, tiny_config(**CASES[case]))
    assert_equal_labels(Predictor(folder, device='cpu'), Predictor(folder, runtime=runtime, window_batch_size=4), files)


@pytest.mark.parametrize('runtime', RUNTIMES)
def test_augmentations(run_folder, files, onnx_file, runtime):
    other = Predictor(run_folder, runtime=runtime, network=onnx_file, tta=True)
    assert_equal_labels(Predictor(run_folder, device='cpu', tta=True), other, files[:1])


def test_torch_does_not_run_the_network(predictor, files, monkeypatch):
    monkeypatch.setattr(predictor.model, 'extract_feat', None)
    assert predictor.predict(files[0]).labels.shape == SIZES[0]


def test_network_from_a_file(run_folder, files, predictor):
    assert_equal_labels(Predictor(run_folder, device='cpu'), predictor, files)


@pytest.mark.parametrize('runtime', RUNTIMES)
def test_network_of_one_size(run_folder, files, tmp_path, runtime):
    """Windows of one size run one at a time; other sizes are an error."""
    predictor = Predictor(run_folder, device='cpu')
    path = tmp_path / 'network.onnx'
    to_onnx(trace(HeadLogits(predictor.model), torch.zeros(1, 3, 32, 32)), 'logits').save(path)
    other = Predictor(run_folder, runtime=runtime, network=path, window_batch_size=4)
    assert_equal_labels(predictor, other, files)
    with pytest.raises(UserError, match=r'network\.onnx is for images of 3x32x32, found 3x24x32; .* --dynamic'):
        other.predict(np.zeros((24, 40, 3), np.uint8))


def test_bf16_is_close(run_folder, files, onnx_file):
    try:
        predictor = Predictor(run_folder, runtime='openvino', precision='bf16', network=onnx_file)
    except UserError as error:
        pytest.skip(str(error))
    shares = [
        (a.labels == b.labels).mean()
        for a, b in zip(Predictor(run_folder, device='cpu')(files), predictor(files), strict=True)
    ]
    assert 0.9 < min(shares) < 1  # 1 would be float32


def test_threads_share_a_network(predictor):
    network = predictor.model.head_logits
    images = [torch.randn(1, 3, 32, 32 + 8 * i) for i in range(4)]
    expected, found = [network(image) for image in images], {}

    def work(i):
        for _ in range(20):
            found[i] = network(images[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[i], expected[i]) for i in range(4))


def test_logits_that_are_not_finite_name_the_image(predictor, files, monkeypatch):
    run = predictor.model.head_logits._run
    monkeypatch.setattr(predictor.model.head_logits, '_run', lambda images: run(images) * np.nan)
    with pytest.raises(UserError, match=r'0\.png'):
        predictor.predict(files[0])


def test_results_stay_when_the_next_image_runs(predictor):
    """OpenVINO writes the outputs of all calls into the same memory."""
    network = predictor.model.head_logits
    first = network(torch.zeros(1, 3, 32, 32))
    kept = first.clone()
    network(torch.ones(1, 3, 32, 32))
    assert torch.equal(first, kept)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(runtime='tensorrt'), "runtime='tensorrt'; expected one of torch, onnxruntime, openvino"),
        (dict(runtime='onnxruntime', precision='bf16'), "precision='bf16' with runtime='onnxruntime'; expected one of"),
        (dict(precision='int8'), "precision='int8' with runtime='torch'; expected one of fp32, fp16, bf16"),
        (dict(precision='bf16', amp=True), "precision='bf16' with amp=True; expected one of them"),
        (dict(network='a.onnx'), "network='a.onnx' with runtime='torch'; expected onnxruntime or openvino"),
        (dict(runtime='openvino', device='cuda'), "device='cuda' with runtime='openvino'; expected cpu"),
        (dict(runtime='openvino', amp=True), "amp=True with runtime='openvino'; expected precision='bf16'"),
        (dict(runtime='openvino', compile=True), "compile=True with runtime='openvino', which compiles by itself"),
        (dict(runtime='openvino', precision='int8'), "'int8' with runtime='openvino' needs a quantised file"),
    ],
)
def test_options_that_do_not_go_together(run_folder, options, message):
    with pytest.raises(UserError, match=message):
        Predictor(run_folder, **options)


@pytest.mark.parametrize('runtime', RUNTIMES)
def test_unusable_files(run_folder, onnx_file, tmp_path, runtime):
    def load(path, folder=run_folder, **options):
        return Predictor(folder, runtime=runtime, network=path, **options)

    with pytest.raises(MissingFileError, match=r'network file .*none\.onnx not found'):
        load(tmp_path / 'none.onnx')
    text = tmp_path / 'network.txt'
    text.write_text('no network')
    with pytest.raises(UserError, match=rf"network\.txt: runtime='{runtime}' expects a file \.\w+"):
        load(text)
    damaged = tmp_path / 'damaged.onnx'
    damaged.write_bytes(onnx_file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r'damaged\.onnx: .* cannot load it'):
        load(damaged)
    classes = dict(num_classes=4, model__decode_head__num_classes=4)
    more = save_run(tmp_path / 'more', tiny_config(**classes), meta=dict(classes=CLASSES[:4], palette=PALETTE[:4]))
    with pytest.raises(UserError, match=r'network\.onnx has 5 classes, the model 4'):
        load(onnx_file, more)
    other = save_run(tmp_path / 'other', tiny_config(model__backbone__num_layers=2))
    with pytest.raises(UserError, match=r'network\.onnx has other weights than the checkpoint: logits differ by'):
        load(onnx_file, other)


@pytest.mark.parametrize('runtime', RUNTIMES)
def test_a_file_that_is_not_quantised(run_folder, onnx_file, runtime):
    with pytest.raises(UserError, match=r"network\.onnx is not quantised, which precision='int8' expects"):
        Predictor(run_folder, runtime=runtime, precision='int8', network=onnx_file)


@pytest.mark.parametrize('runtime', RUNTIMES)
def test_labels_instead_of_logits(run_folder, tmp_path, runtime):
    class Labels(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = HeadLogits(Predictor(run_folder, device='cpu').model)

        def forward(self, image):
            return self.logits(image).argmax(1)

    path = tmp_path / 'labels.onnx'
    to_onnx(trace(Labels(), torch.zeros(1, 3, 32, 32)), 'labels').save(path)
    with pytest.raises(UserError, match=r'labels\.onnx has the outputs labels 1x4x4; expected one of float32, BxKxHxW'):
        Predictor(run_folder, runtime=runtime, network=path)


@pytest.mark.parametrize('runtime', RUNTIMES)
def test_a_runtime_that_is_not_installed(run_folder, runtime, monkeypatch):
    monkeypatch.setattr('mmseg_segmenter.deployment.packages.find_spec', lambda name: None)
    extra = 'onnx' if runtime == 'onnxruntime' else 'openvino'
    with pytest.raises(
        MissingPackageError, match=rf"{runtime} not installed: run pip install 'mmseg_segmenter\[{extra}\]"
    ):
        Predictor(run_folder, runtime=runtime)


def test_a_head_that_cannot_have_any_size(tmp_path):
    head = dict(type='SETRUPHead', in_channels=16, channels=8, num_convs=1, up_scale=1.5, num_classes=5)
    folder = save_run(tmp_path, tiny_config(model__decode_head=dict(head, _delete_=True, norm_cfg=dict(type='BN'))))
    with pytest.raises(UserError, match=r"runtime='openvino' does not compute SETRUPHead at all sizes, such as 24x40"):
        Predictor(folder, runtime='openvino')


def test_models_without_an_exportable_network(tmp_path, onnx_file, monkeypatch):
    """Such a model does not call ``head_logits``, so a file would have no effect."""
    folder = save_run(tmp_path, tiny_config(**CASES['fcn']))
    monkeypatch.setattr(FCNHead, 'predict', lambda *_: None)
    for network in (None, onnx_file):
        with pytest.raises(UserError, match=r'decode_head\.type=FCNHead has inference of its own'):
            Predictor(folder, runtime='openvino', network=network)
