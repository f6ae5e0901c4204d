import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn

from mmseg_segmenter import engine
from mmseg_segmenter.engine import precision


def config(**kwargs):
    return Config(dict(optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1)) | kwargs))


def test_gpu(monkeypatch):
    monkeypatch.setattr(precision, 'get_device', lambda: 'cuda')
    cfg = config()
    engine.enable_amp(cfg, 'fp16')
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.dtype) == ('AmpOptimWrapper', 'float16')
    assert cfg.optim_wrapper.loss_scale == 'dynamic'
    cfg = config()
    engine.enable_amp(cfg, 'bf16')
    assert (cfg.optim_wrapper.dtype, cfg.optim_wrapper.loss_scale) == ('bfloat16', 1.0)
    cfg = config(type='AmpOptimWrapper', loss_scale=512.0)
    engine.enable_amp(cfg, 'fp16')
    assert cfg.optim_wrapper.loss_scale == 512.0


def test_cpu_trains_under_bfloat16(monkeypatch):
    monkeypatch.setattr(precision, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(precision, 'cpu_has_bfloat16', lambda: True)
    cfg = config(type='AmpOptimWrapper', loss_scale='dynamic')
    engine.enable_amp(cfg, 'bf16')
    model = nn.Linear(4, 4)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = model.weight.clone()
    with wrapper.optim_context(model):
        out = model(torch.randn(2, 4))
    assert out.dtype == torch.bfloat16
    wrapper.update_params(out.float().square().sum())
    assert model.weight.dtype == torch.float32 and not torch.equal(model.weight, before)


def test_what_a_machine_cannot_do(monkeypatch):
    monkeypatch.setattr(precision, 'get_device', lambda: 'cpu')
    with pytest.raises(ValueError, match='--amp-dtype fp16 needs a GPU, found none; bf16 runs on CPUs'):
        engine.enable_amp(config(), 'fp16')
    monkeypatch.setattr(precision, 'cpu_has_bfloat16', lambda: False)
    for enable in (lambda: engine.enable_amp(config(), 'bf16'), lambda: engine.enable_test_amp(config(test_cfg={}))):
        with pytest.raises(ValueError, match='this CPU has no instructions for bfloat16'):
            enable()
    with pytest.raises(ValueError, match=r"optim_wrapper.type='Mine'"):
        engine.enable_amp(config(type='Mine'), 'bf16')


def test_compiling_keeps_the_keys():
    model = nn.ModuleDict(dict(backbone=nn.Linear(2, 2), decode_head=nn.Linear(2, 2), neck=nn.Linear(2, 2)))
    keys = list(model.state_dict())
    precision.compile_parts(model)
    assert list(model.state_dict()) == keys
    assert model.backbone._compiled_call_impl and model.neck._compiled_call_impl is None


def test_compiling_reaches_the_head_in_training_and_testing(monkeypatch):
    """Which mmseg calls by the name of its method."""
    calls = []
    monkeypatch.setattr(torch, 'compile', lambda function: lambda *args: calls.append('head') or function(*args))
    model = MODELS.build(
        dict(
            type='Segmenter',
            data_preprocessor=dict(type='SegDataPreProcessor'),
            backbone=dict(type='SegmenterViT', img_size=16, patch_size=8, embed_dims=8, num_layers=1, num_heads=1),
            decode_head=dict(type='LinearHead', in_channels=8, num_classes=3),
        )
    )
    model.backbone.compile = lambda: calls.append('backbone')
    precision.compile_parts(model)
    assert calls == ['backbone']
    image, sample = torch.randn(1, 3, 16, 16), SegDataSample(gt_sem_seg=PixelData(data=torch.zeros(1, 16, 16).long()))
    model.loss(image, [sample])
    model.predict(image)
    model(image, mode='tensor')
    assert calls == ['backbone', 'head', 'head', 'head']
