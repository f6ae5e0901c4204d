"""What exists for ViTs works with the architectures of DINOv2, DINOv3 and DeiT-III.

Compilation, autocast and export are in test_vit.py.
"""

import copy

import mmcv
import numpy as np
import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from tiny_run import save_run, tiny_config, write_image
from torch.testing import assert_close

from mmseg_segmenter import SegmenterViT
from mmseg_segmenter.analysis import benchmark, inspection
from mmseg_segmenter.apis import Predictor

SHAPES = {
    'dinov2': dict(img_size=42, patch_size=7, patch_pad='same', layer_scale=0.5, interpolate_offset=0.1),
    'dinov2-reg-swiglu': dict(
        img_size=42, patch_size=7, patch_pad='same', layer_scale=0.5, num_registers=2, interpolate_antialias=True,
        ffn='swiglu', feedforward_channels=24,
    ),
    'dinov3': dict(layer_scale=0.5, num_registers=2, rope=dict(base=100, rescale=2)),
    'deit3': dict(layer_scale=0.5, cls_pos_embed=False),
}  # fmt: skip


@pytest.fixture(params=SHAPES)
def cfg(request):
    """The config of a small model with two blocks."""
    init_default_scope('mmseg')
    cfg = tiny_config(mode='whole', model__backbone__num_layers=2)
    cfg.model.backbone.update(SHAPES[request.param])
    cfg.model.train_cfg = dict()
    cfg.model.data_preprocessor.size = (32, 40)
    return cfg


def build(cfg, **backbone):
    config = copy.deepcopy(cfg.model)
    config.backbone.update(backbone)
    torch.manual_seed(0)
    model = MODELS.build(config)
    for parameter in model.parameters():  # also what starts at 0
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def batch():
    torch.manual_seed(1)
    size = (32, 40)
    samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 5, (1, *size)))) for _ in range(2)]
    for sample in samples:
        sample.set_metainfo(dict(ori_shape=size, img_shape=size, pad_shape=size))
    return dict(inputs=[torch.randint(0, 256, (3, *size), dtype=torch.uint8) for _ in samples], data_samples=samples)


def gradients(model):
    data = model.data_preprocessor(batch(), True)
    torch.manual_seed(2)  # rotary embeddings are rescaled at random
    model.parse_losses(model.loss(**data))[0].backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_with_cp_and_freezing(cfg):
    plain = gradients(build(cfg).train())
    for name, grad in gradients(build(cfg, with_cp=True).train()).items():
        assert_close(grad, plain[name], atol=1e-6, rtol=1e-4)
    assert all(grad is not None and grad.abs().sum() > 0 for grad in plain.values())
    partly = gradients(build(cfg, frozen_exclude=['layers.1.attn']).train())
    frozen = gradients(build(cfg, frozen_exclude=[]).train())
    for name in plain:
        head = name.startswith('decode_head')
        assert (partly[name] is not None) == (head or name.startswith('backbone.layers.1.attn'))
        assert (frozen[name] is not None) == head


def test_layer_decay(cfg):
    model = build(cfg)
    wrapper = build_optim_wrapper(
        model,
        dict(
            optimizer=dict(type='SGD', lr=1.0),
            constructor='ViTLayerDecayOptimWrapperConstructor',
            paramwise_cfg=dict(decay_rate=0.5),
        ),
    )
    rates = {id(group['params'][0]): group['lr'] for group in wrapper.param_groups}
    for name, parameter in model.named_parameters():
        root, part, block = name.split('.')[:3] if name.count('.') > 1 else (*name.split('.'), '')
        layer = 3 if root == 'decode_head' or part == 'ln1' else int(block) + 1 if part == 'layers' else 0
        assert rates[id(parameter)] == 0.5 ** (3 - layer), name


def test_load_hook(cfg):
    """A checkpoint without attention biases, and of another image size, gives the same function."""
    small, large = build(cfg).backbone.eval(), build(cfg, img_size=cfg.model.backbone.patch_size * 8).backbone.eval()
    for block in small.layers:
        torch.nn.init.zeros_(block.attn.attn.in_proj_bias)
    state = {name: value for name, value in small.state_dict().items() if 'in_proj_bias' not in name}
    large.load_state_dict(state)
    image = torch.randn(1, 3, *large.img_size)
    with torch.no_grad():
        assert_close(large(image)[0], small(image)[0], atol=1e-5, rtol=0)


def test_attention_maps(cfg):
    model = build(cfg).eval()
    images = torch.randn(1, 3, 32, 40)
    weights = inspection.encoder_attention(model, images)
    tokens = model.backbone.num_prefix_tokens
    h, w = inspection.patch_grid(model, images)
    assert weights.shape[-1] == h * w + tokens and (h, w) == model.backbone(images)[0].shape[2:]
    assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)), atol=1e-5, rtol=0)


def test_predict_and_benchmark(cfg, tmp_path):
    """Labels of an image whose sides are no multiples of the patch size, from files, against the plain formula."""
    save_run(tmp_path, cfg)
    predictor = Predictor(tmp_path, device='cpu')
    (prediction,) = predictor([write_image(tmp_path / 'image.png', (33, 47))])
    model = predictor.model
    image = torch.from_numpy(mmcv.imread(str(tmp_path / 'image.png'), channel_order='rgb')).permute(2, 0, 1)[None]
    with torch.no_grad():
        logits = model.decode_head(model.backbone((image - 127.5) / 127.5))
    labels = torch.nn.functional.interpolate(logits, (33, 47), mode='bilinear').argmax(1)[0]
    assert np.array_equal(prediction.labels, labels) and len(labels.unique()) > 1

    models = benchmark.contenders(str(tmp_path / 'config.py'), ['frozen'])
    benchmark.compare(benchmark.Case('train', (32, 40)), models, repeats=1, with_memory=False)
    assert [one.error for one in models] == [None, None] and models[1].agreement < 1e-6


def test_under_mmsegs_name(cfg, monkeypatch):
    """With ``VisionTransformer`` as ``mmseg_segmenter.drop_in`` registers it."""
    monkeypatch.setitem(MODELS._module_dict, 'VisionTransformer', SegmenterViT)
    model = build(cfg, type='VisionTransformer').eval()
    images = torch.randn(1, 3, 32, 40)
    with torch.no_grad():
        assert torch.equal(model(images), build(cfg).eval()(images))
