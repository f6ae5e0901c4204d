"""Every config loads, builds and trains one step; only width and depth are shrunk."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

ROOT = Path(__file__).parent.parent / 'configs'
CONFIGS = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.rglob('*.py') if '_base_' not in p.parts)
ADE20K = [c for c in CONFIGS if 'ade20k' in c]


def shrink(model):
    """Cut width and depth; nothing else changes."""
    heads = 2
    model.backbone.update(embed_dims=16 * heads, num_layers=2, num_heads=heads, init_cfg=None)
    head = model.decode_head
    head.in_channels = 16 * heads
    if head.type == 'SegmenterMaskTransformerHead':
        head.update(embed_dims=16 * heads, num_heads=heads)
    if model.get('auxiliary_head'):
        model.auxiliary_head.in_channels = 16 * heads
    return model


def test_there_are_configs():
    assert len(ADE20K) == 16 and len(CONFIGS) >= 18


@pytest.mark.parametrize('name', CONFIGS)
def test_builds_and_steps(name):
    cfg = Config.fromfile(ROOT / name)
    assert cfg.custom_imports.imports == ['mmseg_segmenter'] and cfg.default_scope == 'mmseg'
    model = MODELS.build(shrink(cfg.model))
    model.init_weights()
    size = cfg.model.data_preprocessor.size
    labels = torch.randint(0, model.num_classes, (1, *size))
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
    sample.set_metainfo(dict(ori_shape=size, img_shape=size, pad_shape=size))
    data = dict(inputs=[torch.randint(0, 256, (3, *size), dtype=torch.uint8)], data_samples=[sample])
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    assert torch.isfinite(model.train_step(data, wrapper)['loss'])
    model.eval()
    assert model.test_step(data)[0].pred_sem_seg.data.shape == (1, *size)


@pytest.mark.parametrize('name', ADE20K)
def test_the_papers_recipe(name):
    cfg = Config.fromfile(ROOT / name)
    optimizer = dict(type='SGD', lr=1e-3, momentum=0.9, nesterov=True, weight_decay=0.0)
    assert cfg.optim_wrapper.optimizer == optimizer and cfg.optim_wrapper.clip_grad is None
    assert cfg.param_scheduler == [dict(type='PolyLR', eta_min=1e-5, power=0.9, begin=0, end=160000, by_epoch=False)]
    assert cfg.train_cfg.max_iters == 160000
    assert cfg.train_dataloader.batch_size == (1 if '8xb1' in name else 2)
    crop = 640 if 'vit-l' in name else 512
    model = cfg.model
    assert model.backbone.img_size == (crop, crop) == model.data_preprocessor.size == model.test_cfg.crop_size
    assert model.test_cfg.stride == (crop - 32, crop - 32) and model.test_cfg.size_divisor == 16
    assert model.backbone.norm_cfg.eps == 1e-5 and model.backbone.drop_path_rate == 0.1
    assert model.backbone.interpolate_mode == 'bilinear' and model.backbone.final_norm
    assert model.data_preprocessor.mean == model.data_preprocessor.std == [127.5] * 3
    letter = {'t': 'Ti', 's': 'S', 'b': 'B', 'l': 'L'}[name.split('vit-')[1][0]]
    assert model.backbone.init_cfg.checkpoint.startswith(f'augreg://{letter}_16-i21k-300ep-lr_0.001-aug_')
    assert model.backbone.init_cfg.checkpoint.endswith('-res_384')
    assert model.decode_head.loss_decode.avg_non_ignore and model.decode_head.num_classes == 150
    head = model.decode_head
    if 'mask' in name:
        assert (head.drop_rate, head.attn_drop_rate, head.drop_path_rate, head.num_layers) == (0.1, 0.1, 0.0, 2)
        assert head.embed_dims == 64 * head.num_heads
    resize = next(t for t in cfg.train_pipeline if t.type == 'RandomResize')
    assert resize.scale == (2560 if crop == 640 else 2048, crop) and resize.ratio_range == (0.5, 2.0)
    random_crop = next(t for t in cfg.train_pipeline if t.type == 'RandomCrop')
    assert random_crop.crop_size == (crop, crop) and random_crop.cat_max_ratio == 0.75
    scales = [t.scale for t in cfg.tta_pipeline[1].transforms[0]]
    assert scales == [(4 * s, s) for s in (int(crop * r) for r in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75))]


@pytest.mark.parametrize(
    ('name', 'millions'), [('vit-t_mask', 6.9), ('vit-s_mask', 26.4), ('vit-b_mask', 103.3), ('vit-l_mask', 334.3)]
)
def test_parameter_count(name, millions):
    """That of the official code, which counts an unused ImageNet classifier, Linear(D, 1000)."""
    config = next(c for c in ADE20K if name in c)
    model = Config.fromfile(ROOT / config).model
    model.backbone.init_cfg = None
    with torch.device('meta'):
        count = sum(p.numel() for p in MODELS.build(model).parameters())
    assert round((count + 1000 * model.backbone.embed_dims + 1000) / 1e6, 1) == millions
