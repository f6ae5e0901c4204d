"""A run as the official code writes it, through the command line and into a model."""

import json
import os
import runpy
import sys
from pathlib import Path

import official
import pytest
import torch
import yaml
from forked_tool import run_tool
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from mmseg.registry import MODELS
from torch.testing import assert_close

from mmseg_segmenter.checkpoints.formats import official_segmenter
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
    result = run_tool(TOOL, source, out)
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
    command = [TOOL.with_name('mmseg2segm.py'), out / 'config.py', out / 'model.pth', back]
    result = run_tool(*command)
    assert result.returncode == 0, result.stderr
    convert_official_run(str(back), str(again))
    assert Config.fromfile(again / 'config.py').model == Config.fromfile(out / 'config.py').model
    one, other = (torch.load(f / 'model.pth', weights_only=True)['state_dict'] for f in (out, again))
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    variant = load_variant(str(back / 'variant.yml'))
    assert variant['net_kwargs']['image_size'] == (64, 64) and variant['net_kwargs']['decoder']['name'] == 'linear'
    result = run_tool(*command)
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
    for old, new, message in (
        (
            "'crop_size': (64, 64)",
            "'crop_size': (24, 24)",
            r'crop_size=\(24, 24\); the official code needs at least 33',
        ),
        ("'type': 'SegmenterViT'", "'type': 'TimmViT'", "model.backbone.type='TimmViT', expected SegmenterViT"),
    ):
        wrong = text.replace(old, new)
        assert wrong != text
        (out / 'config.py').write_text(wrong)
        with pytest.raises(ValueError, match=message):
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


# Datasets that the official code does not know

CLASSES = ['sky', 'road: "wet"', 'ähre', 'a b', 'null', '1', 'tree # 5']
PALETTE = [[i, 2 * i, 255 - i] for i in range(7)]


@pytest.fixture
def own_model(tmp_path):
    """Config and weights of a model with seven classes of one's own."""
    state = official_segmenter.to_mmseg(official.weights(official.load('linear'))).state_dict
    torch.save(dict(state_dict=state), tmp_path / 'model.pth')
    cfg = Config.fromfile(Path(__file__).parents[2] / 'configs' / 'segmenter' / 'segmenter_vit-s_mask_own.py')
    cfg.model.backbone.update(img_size=(64, 64), embed_dims=48, num_layers=3, num_heads=3, init_cfg=None)
    cfg.model.decode_head = dict(type='LinearHead', in_channels=48, num_classes=7)
    cfg.model.test_cfg.update(crop_size=(64, 64), stride=(32, 32))
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.update(metainfo=dict(classes=CLASSES, palette=PALETTE), reduce_zero_label=True)
    cfg.dump(tmp_path / 'config.py')
    return tmp_path / 'config.py', tmp_path / 'model.pth'


def run_tools(monkeypatch, own_model, back, again, *options):
    for name, *args in (('mmseg2segm.py', *own_model, back), ('segm2mmseg.py', back, again, *options)):
        monkeypatch.setattr(sys, 'argv', [name, *map(str, args)])
        runpy.run_path(str(TOOL.with_name(name)), run_name='__main__')


def test_own_dataset_there_and_back(tmp_path, own_model, monkeypatch):
    run_tools(monkeypatch, own_model, tmp_path / 'back', tmp_path / 'again', '--verify')
    content = load_variant(str(tmp_path / 'back' / 'variant.yml'))
    assert content['dataset_kwargs']['dataset'] == 'BaseSegDataset' and content['net_kwargs']['n_cls'] == 7
    cfg = Config.fromfile(tmp_path / 'again' / 'config.py')
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        assert dataset.type == 'BaseSegDataset' and dataset.reduce_zero_label is True
        assert dataset.metainfo == dict(classes=CLASSES, palette=PALETTE)
    assert cfg.model.decode_head.num_classes == 7
    one, other = (torch.load(f, weights_only=True)['state_dict'] for f in (own_model[1], tmp_path / 'again/model.pth'))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_keys_of_the_official_code_are_what_it_has(tmp_path, own_model):
    """Those that it passes on as arguments have nothing added; what is ours is beside them."""
    write_official_run(*map(str, own_model), str(tmp_path / 'back'))
    content = load_variant(str(tmp_path / 'back' / 'variant.yml'))
    assert set(content) == {'dataset_kwargs', 'inference_kwargs', 'net_kwargs', 'version', 'dataset_meta'}
    assert set(content['dataset_kwargs']) == {'dataset', 'image_size', 'crop_size', 'normalization'}
    # the arguments of VisionTransformer, and what create_segmenter and create_vit take out of them
    assert set(content['net_kwargs']) == {
        'backbone', 'd_model', 'decoder', 'distilled', 'drop_path_rate', 'dropout', 'image_size', 'n_cls', 'n_heads',
        'n_layers', 'normalization', 'patch_size',
    }  # fmt: skip


@pytest.mark.parametrize('dataset', ['ade20k', 'cityscapes', 'pascal_context'])
def test_sizes_there_and_back(tmp_path, dataset):
    """The short side of the images is not the crop."""
    variant = VARIANT.replace('dataset: ade20k, image_size: 64', f'dataset: {dataset}, image_size: 96')
    out, back = tmp_path / 'out', tmp_path / 'back'
    convert_official_run(str(make_run(tmp_path / 'run', 'linear', variant)), str(out))
    write_official_run(str(out / 'config.py'), str(out / 'model.pth'), str(back))
    content = load_variant(str(back / 'variant.yml'))
    assert content['dataset_kwargs'] == dict(dataset=dataset, image_size=96, crop_size=64, normalization='vit')
    assert content['inference_kwargs'] == dict(im_size=96, window_size=64, window_stride=32)
    assert 'dataset_meta' not in content


@pytest.mark.parametrize('as_file', [False, True])
def test_classes_for_a_variant_without(tmp_path, monkeypatch, as_file):
    source = make_run(tmp_path / 'run', 'linear', VARIANT.replace('dataset: ade20k', 'dataset: mine'))
    (tmp_path / 'names.txt').write_text('\n'.join(CLASSES) + '\n', encoding='utf-8')
    names = [str(tmp_path / 'names.txt')] if as_file else CLASSES
    monkeypatch.setattr(sys, 'argv', ['segm2mmseg.py', str(source), str(tmp_path / 'out'), '--classes', *names])
    runpy.run_path(str(TOOL), run_name='__main__')
    dataset = Config.fromfile(tmp_path / 'out' / 'config.py').test_dataloader.dataset
    assert dataset.type == 'BaseSegDataset' and dataset.metainfo == dict(classes=CLASSES)


@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        (['a', 'b'], '2 names of classes, expected 7, the number in the weights'),
        (['a'] * 7, r"--classes: classes=\['a', 'a', .*expected different names"),
        ([], r'--classes: classes=\[\], expected different names'),
        (['bytes.txt'], r'bytes\.txt: not UTF-8 text, expected one name a line'),
        (['empty.txt'], r'empty\.txt: classes=\[\], expected different names'),
    ],
)
def test_wrong_classes(tmp_path, monkeypatch, classes, message):
    source = make_run(tmp_path / 'run', 'linear', VARIANT.replace('dataset: ade20k', 'dataset: mine'))
    monkeypatch.chdir(tmp_path)
    Path('bytes.txt').write_bytes(b'\xff\xfe')
    Path('empty.txt').write_text('\n\n')
    with pytest.raises(ValueError, match=message):
        convert_official_run(str(source), 'out', classes=classes)
    assert not Path('out').exists()


def test_number_of_classes_that_the_dataset_does_not_have_is_a_warning(tmp_path):
    run = convert_official_run(str(make_run(tmp_path / 'run', 'linear')), str(tmp_path / 'out'))
    (warning,) = run.warnings
    assert '7 classes, but ade20k has 150' in warning and '--classes' in warning
    run = convert_official_run(str(tmp_path / 'run'), str(tmp_path / 'other'), classes=CLASSES)
    assert run.warnings == []


def test_what_is_assumed_is_printed(tmp_path):
    run = convert_official_run(str(make_run(tmp_path / 'run', 'mask_transformer')), str(tmp_path / 'out'))
    assert 'assumed, as in the official code: exact (erf) GELU, LayerNorm eps 1e-05, decoder heads width // 64' in str(
        run
    )
