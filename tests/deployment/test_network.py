"""The modules that are exported compute what the model computes, at any size."""

from typing import Any

import pytest
import torch
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from tiny_run import tiny_config
from torch import Tensor
from torch.testing import assert_close

from mmseg_segmenter.deployment import HeadLogits, ImageNetwork, to_onnx, to_openvino, trace
from mmseg_segmenter.errors import UserError

SIZES = [(32, 32), (40, 24), (37, 51)]
DYNAMIC = {0: 'batch', 2: 'height', 3: 'width'}
LINEAR = dict(_delete_=True, type='LinearHead', in_channels=16, num_classes=5)
OPTIONS: list[dict[str, Any]] = [
    {},
    {'model__decode_head': LINEAR},
    {'model__test_cfg__size_divisor': 8, 'model__decode_head__align_corners': True},
    {'model__test_cfg__size_divisor': 16},
]


def tiny_model(**changes: Any) -> Any:
    """Return a model in ``'whole'`` mode with random weights."""
    model = MODELS.build(tiny_config(mode='whole', **changes).model)
    model.init_weights()
    return model.eval()


def whole_logits(model: Any, images: Tensor) -> Tensor:
    """Return the logits of whole-image inference, (B, K, H, W)."""
    return torch.stack([one.full() for one in model.logit_maps(images)])


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('options', OPTIONS)
def test_logits_are_those_of_whole_inference(options: dict[str, Any], size: tuple[int, int]) -> None:
    model = tiny_model(**options)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        logits = ImageNetwork(model, normalise=False, argmax=False)(images)
        labels = ImageNetwork(model, normalise=False)(images)
        expected = whole_logits(model, images)
        samples = model.predict(images)
    assert_close(logits, expected, atol=1e-5, rtol=0)
    assert labels.dtype == torch.uint8
    top = expected.topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1] > 1e-4
    assert clear.float().mean() > 0.9
    assert torch.equal(labels[clear].long(), torch.stack([s.pred_sem_seg.data[0] for s in samples])[clear])


@pytest.mark.parametrize(
    'order', [dict(bgr_to_rgb=True), dict(bgr_to_rgb=False), dict(bgr_to_rgb=False, rgb_to_bgr=True)]
)
def test_images_are_normalised_as_the_preprocessor_does(order: dict[str, bool]) -> None:
    options = {f'model__data_preprocessor__{key}': value for key, value in order.items()}
    options |= {'model__data_preprocessor__mean': [1.0, 2, 3], 'model__data_preprocessor__std': [4.0, 5, 6]}
    model = tiny_model(**options)
    rgb = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    chw = rgb[0].permute(2, 0, 1)
    loaded = chw if order.get('rgb_to_bgr') else chw.flip(0)  # mmseg loads BGR
    data = model.data_preprocessor(dict(inputs=[loaded], data_samples=[SegDataSample()]))
    with torch.no_grad():
        expected = whole_logits(model, data['inputs'])
        logits = ImageNetwork(model, argmax=False, rgb=order['bgr_to_rgb'])(rgb)
    assert_close(logits, expected, atol=1e-5, rtol=0)


def test_labels_above_256_classes() -> None:
    model = tiny_model(num_classes=300, test_dataloader__dataset__metainfo=dict(_delete_=True))
    images = torch.randn(1, 3, 32, 32)
    labels = ImageNetwork(model, normalise=False)(images)
    assert labels.dtype == torch.int64
    assert labels.max() > 255


def test_binary_head_uses_its_threshold() -> None:
    head = dict(
        _delete_=True, type='FCNHead', in_channels=16, channels=16, num_classes=2, out_channels=1, num_convs=0,
        concat_input=False, threshold=0.7, loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True),
    )  # fmt: skip
    model = tiny_model(model__decode_head=head)
    torch.nn.init.normal_(model.decode_head.conv_seg.weight)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        labels = ImageNetwork(model, normalise=False)(images)
        expected = model.predict(images)[0].pred_sem_seg.data
    assert 0 < expected.float().mean() < 1
    assert torch.equal(labels.float(), expected.float())


def test_the_model_is_not_changed() -> None:
    model = tiny_model()
    images = torch.randn(1, 3, 37, 51)
    with torch.no_grad():
        before = whole_logits(model, images)
        HeadLogits(model).half()
        assert_close(whole_logits(model, images), before, atol=0, rtol=0)


def test_computes_in_the_dtype_of_its_weights() -> None:
    model = tiny_model()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected, logits = HeadLogits(model)(images), HeadLogits(model).bfloat16()(images)
    assert logits.dtype == torch.float32
    assert 1e-5 < (logits - expected).abs().max() < 0.2


def test_foreign_models_are_refused() -> None:
    with pytest.raises(UserError, match='type=Linear'):
        HeadLogits(torch.nn.Linear(1, 1))


@pytest.fixture(scope='module')
def dynamic_model() -> Any:
    torch.manual_seed(0)
    return tiny_model(model__test_cfg__size_divisor=8)


@pytest.fixture(scope='module')
def dynamic_graph(dynamic_model: Any) -> torch.export.ExportedProgram:
    network = ImageNetwork(dynamic_model, normalise=False, argmax=False)
    return trace(network, torch.randn(1, 3, 43, 53), DYNAMIC)


@pytest.mark.parametrize('shape', [(1, 3, 32, 32), (2, 3, 40, 24), (3, 3, 37, 51), (1, 3, 9, 90)])
def test_graph_runs_at_other_sizes(
    dynamic_model: Any, dynamic_graph: torch.export.ExportedProgram, shape: tuple[int, ...]
) -> None:
    images = torch.randn(*shape)
    with torch.no_grad():
        assert_close(dynamic_graph.module()(images), whole_logits(dynamic_model, images), atol=1e-5, rtol=0)


def test_onnx_runs_at_other_sizes(dynamic_model: Any, dynamic_graph: torch.export.ExportedProgram) -> None:
    pytest.importorskip('onnxscript')
    onnxruntime = pytest.importorskip('onnxruntime')
    program = to_onnx(dynamic_graph, 'logits', DYNAMIC)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    assert [(i.name, i.shape) for i in session.get_inputs()] == [('image', ['batch', 3, 'height', 'width'])]
    for size in SIZES:
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            expected = whole_logits(dynamic_model, images)
        (logits,) = session.run(['logits'], {'image': images.numpy()})
        assert_close(torch.from_numpy(logits), expected, atol=1e-5, rtol=0)


def test_openvino_runs_at_other_sizes(dynamic_model: Any, dynamic_graph: torch.export.ExportedProgram) -> None:
    openvino = pytest.importorskip('openvino')
    model = openvino.compile_model(to_openvino(dynamic_graph, 'logits'), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    for size in SIZES:
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            expected = whole_logits(dynamic_model, images)
        logits = model({'image': images.numpy()})['logits']
        assert_close(torch.from_numpy(logits), expected, atol=1e-5, rtol=0)
