"""A run as the official code writes it, through the command line and into a model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import official
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from mmseg.registry import MODELS
from torch.testing import assert_close

from mmseg_segmenter.checkpoints.official_run import (
    convert_official_run,
    official_weights,
    write_official_run,
)
from mmseg_segmenter.checkpoints.official_variant import load_variant

TOOL = Path(__file__).parents[2] / 'tools' / 'model_converters' / 'segm2mmseg.py'
VARIANT = """
dataset_kwargs: {batch_size: 2, crop_size: 64, dataset: ade20k, image_size: 64, normalization: vit, split: train}
inference_kwargs: {im_size: 64, window_size: 64, window_stride: 64}
net_kwargs:
  backbone: vit_tiny_patch16_384
  d_model: 48
  decoder: {drop_path_rate: 0.0, dropout: 0.1, n_cls: 7, n_layers: 2, name: mask_transformer}
  distilled: false
  drop_path_rate: 0.1
  dropout: 0.0
  image_size: !!python/tuple
  - 64
  - 64
  n_cls: 7
  n_heads: 3
  n_layers: 12
  normalization: vit
  patch_size: 16
"""


def make_run(folder, name, variant=VARIANT):
    folder.mkdir()
    model = official.weights(official.load(name))
    model |= {'encoder.head.weight': torch.zeros(1000, 48), 'encoder.head.bias': torch.zeros(1000)}
    torch.save(dict(model=model, optimizer={}, n_cls=7, lr_scheduler={}, epoch=1), folder / 'checkpoint.pth')
    (folder / 'variant.yml').write_text(variant)
    return folder


@pytest.mark.parametrize('name', ['linear', 'mask_transformer'])
@pytest.mark.parametrize('file', ['', 'checkpoint.pth'])
def test_converted_run_gives_the_official_logits(tmp_path, name, file):
    source, out = make_run(tmp_path / 'run', name) / file, tmp_path / 'out'
    result = subprocess.run([sys.executable, TOOL, source, out], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert 'ViT-D48/16, 64x64, 3 layers, 3 heads' in result.stdout and '7 classes' in result.stdout
    assert ('mask decoder of 2 layers' if name == 'mask_transformer' else 'linear decoder') in result.stdout
    cfg = Config.fromfile(out / 'config.py')
    assert cfg.model.test_cfg == dict(
        mode='slide', crop_size=(64, 64), stride=(32, 32), size_divisor=16, upscale_small=True
    )
    assert cfg.model.backbone.norm_cfg.eps == 1e-5 and cfg.test_dataloader.dataset.type == 'ADE20KDataset'
    model = MODELS.build(cfg.model).eval()
    load_checkpoint(model, str(out / 'model.pth'), map_location='cpu', strict=True)
    reference = official.load(name)
    for tag in ('a_2x64x64', 'b_1x80x112', 'c_1x72x100'):
        image = torch.from_numpy(reference[f'in/{tag}'])
        with torch.no_grad():
            logits = model.whole_inference(image, [dict(img_shape=image.shape[2:])] * len(image))
        assert_close(logits, torch.from_numpy(reference[f'logits/{tag}']), atol=1e-4, rtol=0)
    model.double()
    for tag in ('a_2x64x64', 'b_1x80x112'):
        with torch.no_grad():
            lowres = model(torch.from_numpy(reference[f'in/{tag}']).double())
        assert_close(lowres, torch.from_numpy(reference[f'lowres_f64/{tag}']), atol=1e-9, rtol=0)


@pytest.mark.parametrize('name', ['linear', 'mask_transformer'])
def test_back_to_official_bit_for_bit(tmp_path, name):
    convert_official_run(str(make_run(tmp_path / 'run', name)), str(tmp_path / 'out'))
    state = torch.load(tmp_path / 'out' / 'model.pth', weights_only=True)['state_dict']
    again = official_weights(state)
    theirs = torch.load(tmp_path / 'run' / 'checkpoint.pth', weights_only=True)['model']
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[key], theirs[key]) for key in theirs)


def test_mmseg2segm(tmp_path):
    """To the official layout and from there to the same config and weights."""
    out, back, again = tmp_path / 'out', tmp_path / 'back', tmp_path / 'again'
    convert_official_run(str(make_run(tmp_path / 'run', 'linear')), str(out))
    command = [sys.executable, TOOL.with_name('mmseg2segm.py'), out / 'config.py', out / 'model.pth', back]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    convert_official_run(str(back), str(again))
    assert Config.fromfile(again / 'config.py').model == Config.fromfile(out / 'config.py').model
    one, other = (torch.load(f / 'model.pth', weights_only=True)['state_dict'] for f in (out, again))
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    variant = load_variant(str(back / 'variant.yml'))
    assert variant['net_kwargs']['image_size'] == (64, 64) and variant['net_kwargs']['decoder']['name'] == 'linear'
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1 and 'checkpoint.pth exists; use --force' in result.stderr


def test_model_that_the_official_code_cannot_build(tmp_path):
    out = tmp_path / 'out'
    convert_official_run(str(make_run(tmp_path / 'run', 'mask_transformer')), str(out))
    with pytest.raises(ValueError, match='has width/64 heads; found embed_dims=48 on 48, num_heads=3'):
        write_official_run(str(out / 'config.py'), str(out / 'model.pth'), str(tmp_path / 'back'))
    text = (out / 'config.py').read_text()
    (out / 'config.py').write_text(text.replace('1e-05', '1e-06'))
    with pytest.raises(ValueError, match='the official code has LayerNorm eps 1e-5'):
        write_official_run(str(out / 'config.py'), str(out / 'model.pth'), str(tmp_path / 'back'))
    assert not (tmp_path / 'back').exists()


def test_config_of_the_other_datasets_and_deit(tmp_path):
    for dataset, crop, type_ in (
        ('cityscapes', 768, 'CityscapesDataset'),
        ('pascal_context', 480, 'PascalContextDataset'),
    ):
        variant = VARIANT.replace('dataset: ade20k', f'dataset: {dataset}').replace(
            'crop_size: 64', f'crop_size: {crop}'
        )
        variant = variant.replace('  normalization: vit\n  patch', '  normalization: deit\n  patch')
        convert_official_run(str(make_run(tmp_path / dataset, 'linear', variant)), str(tmp_path / f'{dataset}_out'))
        cfg = Config.fromfile(tmp_path / f'{dataset}_out' / 'config.py')
        assert cfg.test_dataloader.dataset.type == type_
        assert cfg.model.test_cfg.stride == (crop - 32, crop - 32)
        assert cfg.model.data_preprocessor.mean == [123.675, 116.28, 103.53]


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ('dataset: ade20k', 'dataset: mine', r"dataset='mine'.*expected one of ade20k, cityscapes, pascal_context"),
        ('normalization: vit\n  patch', 'normalization: x\n  patch', "normalization='x'"),
        ('n_heads: 3', 'n_heads: 5', 'n_heads=5 in variant.yml does not fit a width of 48'),
        ('net_kwargs:', 'other:', 'no net_kwargs'),
        ('d_model: 48', 'd_model: [', 'refused or not YAML'),
    ],
)
def test_wrong_variant(tmp_path, old, new, message):
    source = make_run(tmp_path / 'run', 'linear', VARIANT.replace(old, new))
    with pytest.raises(ValueError, match=message):
        convert_official_run(str(source), str(tmp_path / 'out'))
    assert not (tmp_path / 'out').exists()


def test_tag_that_would_execute_is_refused(tmp_path):
    canary = tmp_path / 'canary'
    (tmp_path / 'variant.yml').write_text(f'net_kwargs: !!python/object/apply:os.mkdir [{json.dumps(str(canary))}]\n')
    with pytest.raises(ValueError, match=r'variant\.yml: refused.*python/object/apply'):
        load_variant(str(tmp_path / 'variant.yml'))
    assert not canary.exists()


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'checkpoint\.pth not found'):
        convert_official_run(str(tmp_path), str(tmp_path / 'out'))
    source = make_run(tmp_path / 'run', 'linear')
    os.unlink(source / 'variant.yml')
    with pytest.raises(FileNotFoundError, match=r'variant\.yml not found; the official code writes it'):
        convert_official_run(str(source), str(tmp_path / 'out'))


def test_existing_files_are_kept(tmp_path):
    source = make_run(tmp_path / 'run', 'linear')
    (tmp_path / 'config.py').write_text('mine')
    with pytest.raises(FileExistsError, match=r'config\.py exists; use --force'):
        convert_official_run(str(source), str(tmp_path))
    assert (tmp_path / 'config.py').read_text() == 'mine' and not (tmp_path / 'model.pth').exists()


def test_variant_is_read_as_the_official_code_reads_it(tmp_path):
    (tmp_path / 'variant.yml').write_text(VARIANT)
    assert load_variant(str(tmp_path / 'variant.yml')) == yaml.load(VARIANT, Loader=yaml.UnsafeLoader)
