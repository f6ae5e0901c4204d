"""What only a GPU can show; each test also runs on the CPU, where its own logic is tried."""

from collections.abc import Iterator

import pytest
import torch
from allocations import LargestTensor
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.runner import load_checkpoint
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from mmseg_segmenter.analysis import benchmark
from mmseg_segmenter.analysis.benchmark import float32_products
from mmseg_segmenter.engine.precision import compile_parts, cpu_has_bfloat16, enable_amp
from mmseg_segmenter.models.dense import logit_map

K = 7
HEADS = dict(
    mask=dict(type='SegmenterMaskTransformerHead', embed_dims=32, num_heads=2, num_layers=2),
    linear=dict(type='LinearHead'),
    # convolutions
    pup=dict(type='SETRUPHead', channels=16, in_index=0, kernel_size=3, dropout_ratio=0, norm_cfg=dict(type='BN')),
)
TESTS = dict(
    whole=dict(mode='whole', size_divisor=8),
    slide=dict(mode='slide', crop_size=(32, 32), stride=(24, 24), size_divisor=8),
    large=dict(mode='slide', crop_size=(512, 512), stride=(480, 480), size_divisor=8),
)
SIZE = (75, 90)


ONLY_GPU = pytest.mark.parametrize('device', [pytest.param('cuda', marks=pytest.mark.gpu)], indirect=True)


@pytest.fixture(params=['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
def device(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    with float32_products(tf32=False):
        yield


def model_config(head='mask', mode='whole', num_classes=K, **kwargs):
    return dict(
        type='Segmenter',
        data_preprocessor=dict(
            type='SegDataPreProcessor', mean=[127.5] * 3, std=[127.5] * 3, size=(80, 96), seg_pad_val=255
        ),
        backbone=dict(
            type='SegmenterViT', img_size=32, patch_size=8, embed_dims=32, num_layers=3, num_heads=2, final_norm=True
        ),
        decode_head=dict(in_channels=32, num_classes=num_classes, **HEADS[head]),
        test_cfg=ConfigDict(TESTS[mode]),
        **kwargs,
    )


def build(*args, **kwargs):
    torch.manual_seed(0)
    model = MODELS.build(model_config(*args, **kwargs))
    for parameter in model.parameters():
        if parameter.ndim > 1:  # biases of their own for the classes would decide every pixel
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def batch(size=SIZE, count=2, **meta):
    """Images and annotations as a data loader gives them."""
    generator = torch.Generator().manual_seed(0)
    info = dict(ori_shape=size, img_shape=size, pad_shape=size, img_path='', **meta)
    inputs, samples = [], []
    for _ in range(count):
        inputs.append(torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator))
        labels = torch.randint(0, K, (1, *size), generator=generator)
        labels[:, :3] = 255
        samples.append(SegDataSample(metainfo=info, gt_sem_seg=PixelData(data=labels)))
    return dict(inputs=inputs, data_samples=samples)


def optimizer(model, precision=None):
    cfg = Config(dict(optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9))))
    if precision:
        enable_amp(cfg, precision)
    return build_optim_wrapper(model, cfg.optim_wrapper)


def logits_of(model, data=None):
    with torch.no_grad():
        return model(**model.data_preprocessor(data or batch(), False), mode='tensor')


def labels_of(model, data):
    return torch.stack([sample.pred_sem_seg.data.cpu() for sample in model.test_step(data)])


def loss_and_gradients(model):
    model.train()
    losses = model(**model.data_preprocessor(batch(), True), mode='loss')
    loss, _ = model.parse_losses(losses)
    loss.backward()
    return loss.item(), {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize('head', HEADS)
def test_forward_equals_cpu(device, head):
    expected = logits_of(build(head))
    found = logits_of(build(head).to(device))
    assert found.device.type == device and expected.std() > 1e-3
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('mode', ['whole', 'slide'])
@pytest.mark.parametrize('head', ['mask', 'linear'])
def test_labels_equal_cpu(device, head, mode):
    expected = labels_of(build(head, mode), batch())
    found = labels_of(build(head, mode).to(device), batch())
    # a pixel on the line between two classes may fall to either side
    assert (found == expected).float().mean() > 0.999 and len(expected.unique()) > 2


def augmented():
    sizes = [(48, 56), SIZE, (96, 112)]
    data = []
    for size in sizes:
        for flip in (False, True):
            one = batch(size, flip=flip, flip_direction='horizontal')
            for sample in one['data_samples']:
                sample.set_metainfo(dict(ori_shape=SIZE))
            data.append(one)
    return {key: [one[key] for one in data] for key in ('inputs', 'data_samples')}


def test_augmented_labels_equal_cpu(device):
    def labels(on):
        return labels_of(MODELS.build(dict(type='SegTTAModel', module=build('mask', 'slide').to(on))), augmented())

    expected = labels('cpu')
    assert (labels(device) == expected).float().mean() > 0.999 and len(expected.unique()) > 2


@pytest.mark.parametrize('head', HEADS)
def test_loss_and_gradients_equal_cpu(device, head):
    expected_loss, expected = loss_and_gradients(build(head))
    loss, gradients = loss_and_gradients(build(head).to(device))
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-3 * scale + 1e-6, msg=name)


@pytest.mark.parametrize(('dtype', 'atol'), [(torch.float16, 0.02), (torch.bfloat16, 0.15)], ids=['fp16', 'bf16'])
def test_autocast_is_near_float32(device, dtype, atol):
    model = build().to(device)
    expected = logits_of(model)
    with torch.autocast(device, dtype):
        found = logits_of(model)
    difference = (found.float() - expected).abs().max().item()
    assert 0 < difference < atol * expected.abs().max().item()
    with torch.autocast(device, dtype):
        labels = labels_of(build('mask', 'slide').to(device), batch())
    assert (labels == labels_of(build('mask', 'slide').to(device), batch())).float().mean() > 0.9


@pytest.mark.parametrize('precision', ['fp16', 'bf16'])
def test_mixed_precision_learns(device, precision):
    if device == 'cpu' and (precision == 'fp16' or not cpu_has_bfloat16()):
        pytest.skip(f'this CPU does not train in {precision}')
    model = build().to(device).train()
    wrapper = optimizer(model, precision)
    before = [p.detach().clone() for p in model.parameters()]
    losses = [model.train_step(batch(), wrapper)['loss'].item() for _ in range(20)]
    assert all(torch.isfinite(torch.tensor(losses))) and losses[-1] < losses[0]
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in model.parameters())
    assert any(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    if precision == 'fp16':
        assert wrapper.loss_scaler.get_scale() > 0 and wrapper.state_dict()['loss_scaler']


@ONLY_GPU
@pytest.mark.parametrize('training', [False, True])
def test_compiled_equals_eager(device, training):
    torch.compiler.reset()
    model, compiled = build().to(device), build().to(device)
    compile_parts(compiled)
    if training:
        (loss, gradients), (found, others) = loss_and_gradients(model), loss_and_gradients(compiled)
        assert found == pytest.approx(loss, rel=1e-3)
        for name, gradient in gradients.items():
            scale = gradient.abs().max().item()
            torch.testing.assert_close(others[name], gradient, rtol=0, atol=1e-2 * scale + 1e-5, msg=name)
    else:
        torch.testing.assert_close(logits_of(compiled), logits_of(model), rtol=1e-3, atol=1e-3)
    torch.compiler.reset()


def test_sliding_windows_make_no_logits_of_full_size(device, monkeypatch):
    monkeypatch.setattr(logit_map, '_TILE_BYTES', dict(cpu=1 << 18, cuda=1 << 18))
    height, width = 256, 320
    model = build('linear', 'slide').to(device)
    with LargestTensor() as largest:
        model.test_step(batch((height, width), 1))
    # the normalised image has 3 channels; the logits would have 7
    assert largest.numel <= 4 * height * width


@ONLY_GPU
def test_memory_of_sliding_windows(device):
    height, width, classes = 1024, 1536, 150
    model = build('linear', 'large', classes).to(device)
    for _ in range(2):  # the second run has its libraries initialised
        data = batch((height, width), 1)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        model.test_step(data)
        used = torch.cuda.max_memory_allocated() - before
    # the logits alone would take 944 MB; a tile has 128 MiB, and two or three of that size live at a time
    assert used < 0.7 * 4 * classes * height * width


def test_the_training_step_never_waits_for_the_gpu(device):
    """From the batch on the GPU to the optimizer's step."""
    model = build().to(device).train()
    wrapper = optimizer(model)
    for debug in (False, True):  # the first step allocates and initialises libraries
        data = model.data_preprocessor(batch(), True)
        if device == 'cuda':
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode('error' if debug else 'default')
        try:
            loss, _ = model.parse_losses(model(**data, mode='loss'))
            wrapper.update_params(loss)
        finally:
            if device == 'cuda':
                torch.cuda.set_sync_debug_mode('default')
    assert torch.isfinite(loss)


def test_channels_last_equals_contiguous(device):
    plain, ours = build('pup').to(device), build('pup', channels_last=True).to(device)
    ours.load_state_dict(plain.state_dict())
    formats = []
    ours.decode_head.up_convs[0][0].conv.register_forward_hook(
        lambda module, args, output: formats.append(output.is_contiguous(memory_format=torch.channels_last))
    )
    torch.testing.assert_close(logits_of(ours), logits_of(plain), rtol=1e-3, atol=1e-4)
    assert formats == [True]


def test_a_checkpoint_moves_between_devices(device, tmp_path):
    source = build().to(device)
    torch.save(dict(state_dict=source.state_dict()), tmp_path / 'model.pth')
    expected = logits_of(source).cpu()
    for map_location, target in ((device, device), ('cpu', 'cpu'), ('cpu', device)):
        model = build()
        for parameter in model.parameters():
            torch.nn.init.zeros_(parameter)
        load_checkpoint(model.to(target), str(tmp_path / 'model.pth'), map_location=map_location, strict=True)
        assert next(model.parameters()).device.type == target
        torch.testing.assert_close(logits_of(model).cpu(), expected, rtol=1e-4, atol=1e-4)


@ONLY_GPU
def test_benchmark_measures_time_and_memory(device, tmp_path):
    benchmark.prepare()
    path = tmp_path / 'tiny.py'
    Config(dict(model=model_config())).dump(str(path))
    for mode in ('forward', 'train'):
        models = benchmark.contenders(str(path), ['mmseg'])
        benchmark.compare(
            benchmark.Case(mode, (64, 64), 2, None, 'fp16'), models, 3, peak=benchmark.matmul_peak('fp16')
        )
        for side in models:
            assert side.error is None and side.median > 0 and side.peak_share > 0
            assert 0 < side.model_gb < side.peak_gb < 2
