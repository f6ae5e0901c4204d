"""``--verify``: agrees with the reference code, passes right conversions and stops wrong ones."""

import os
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import official
import pytest
import torch
from torch.testing import assert_close

from mmseg_segmenter import Segmenter, SegmenterViT
from mmseg_segmenter.checkpoints import convert
from mmseg_segmenter.checkpoints import official_run as converter
from mmseg_segmenter.checkpoints.architecture import standard_heads
from mmseg_segmenter.checkpoints.formats import augreg, official_segmenter, timm
from mmseg_segmenter.checkpoints.keymap import keep, keep_back
from mmseg_segmenter.checkpoints.official_run import convert_official_run, write_official_run

TOOLS = Path(__file__).parents[2] / 'tools' / 'model_converters'
DATA = Path(__file__).parents[1] / 'data'
NPZ = DATA / 'augreg_tiny_i21k.npz'
VIT = dict(img_size=64, patch_size=8, embed_dims=64, num_layers=2, num_heads=1, final_norm=True)
VARIANT = """
dataset_kwargs: {crop_size: 64, dataset: ade20k}
net_kwargs: {image_size: [64, 64], n_heads: 1, normalization: deit}
"""


@pytest.fixture(autouse=True)
def _without_timm(monkeypatch):
    """The forward passes of this package, wherever the tests run; test_timm.py has timm's."""
    monkeypatch.setitem(sys.modules, 'timm', None)


def random(model):
    for param in model.parameters():
        torch.nn.init.normal_(param, std=0.5)
    return model


@pytest.fixture(params=['vit', 'deit'])
def with_dist_token(request):
    return request.param == 'deit'


@pytest.fixture
def timm_file(tmp_path, with_dist_token):
    model = random(SegmenterViT(**VIT, with_dist_token=with_dist_token))
    state = timm.from_mmseg(model.state_dict()) | {'head.weight': torch.zeros(3, 64), 'head.bias': torch.zeros(3)}
    torch.save(dict(model=state), tmp_path / 'timm.pth')
    return tmp_path / 'timm.pth'


@pytest.fixture(params=['linear', 'mask'])
def official_run(tmp_path, request, with_dist_token):
    head = dict(type='LinearHead', in_channels=64, num_classes=5)
    if request.param == 'mask':
        head.update(type='SegmenterMaskTransformerHead', embed_dims=64, num_layers=2, num_heads=1)
    backbone = dict(type='SegmenterViT', **VIT, with_dist_token=with_dist_token)
    model = random(Segmenter(backbone=backbone, decode_head=head))
    folder = tmp_path / 'run'
    folder.mkdir()
    torch.save(dict(model=official_segmenter.from_mmseg(model.state_dict())), folder / 'checkpoint.pth')
    (folder / 'variant.yml').write_text(VARIANT)
    return folder


def run_tool(monkeypatch, name, *args):
    """In this process, so that rules can be patched."""
    monkeypatch.setattr(sys, 'argv', [name, *map(str, args)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(TOOLS / name), run_name='__main__')
        sys.exit(0)  # tools that were successful just end
    if isinstance(end.value.code, str):  # what the interpreter does with a message
        print(end.value.code, file=sys.stderr)
        return 1
    return end.value.code


def assert_verified(text, reference):
    found = re.search(r'verified: largest difference (\S+), largest value (\S+), in float64 against (.*)', text)
    assert found and found[3] == reference, text
    assert float(found[1]) <= 1e-12 * float(found[2]) and float(found[2]) > 1


def swapped(rules, one, other):
    """Rules with the targets of two sources exchanged."""
    targets = {rule.sources[0]: rule.target for rule in rules}
    new = {targets[one]: targets[other], targets[other]: targets[one]}
    return [type(r)(r.sources, new.get(r.target, r.target), r.join, r.split, r.optional) for r in rules]


def untransposed(rules, source):
    return [type(r)(r.sources, r.target, keep, keep_back) if source in r.sources else r for r in rules]


# The references themselves


@pytest.mark.parametrize('name', ['linear', 'mask_transformer'])
def test_official_forward_is_the_official_codes(name):
    reference = official.load(name)
    image = torch.from_numpy(reference['in/a_2x64x64']).double()
    ours = official_segmenter.reference_logits(official.weights(reference), image, num_heads=3)
    assert_close(ours, torch.from_numpy(reference['lowres_f64/a_2x64x64']), atol=1e-11, rtol=0)


def test_jax_forward_is_flaxs():
    with np.load(NPZ) as weights, np.load(DATA / 'augreg_tiny_i21k_forward.npz') as file:
        image = torch.from_numpy(file['image_nhwc']).permute(0, 3, 1, 2).double()
        ours = augreg.reference_tokens({k: torch.from_numpy(v) for k, v in weights.items()}, image, num_heads=2)
        assert_close(ours, torch.from_numpy(file['tokens_exact_gelu']), atol=3e-6, rtol=0)


# Right conversions


def test_augreg(tmp_path, monkeypatch, capsys):
    assert run_tool(monkeypatch, 'vitjax2mmseg.py', NPZ, tmp_path / 'out.pth', '--verify') == 0
    assert_verified(capsys.readouterr().out, 'a plain forward of the JAX layout')
    assert (tmp_path / 'out.pth').exists()


def test_augreg_with_the_names_of_todays_flax(tmp_path):
    with np.load(NPZ) as file:
        names = {new: old for old, new in augreg._FLAX_NAMES.items()}
        pattern = re.compile('|'.join(map(re.escape, names)))
        np.savez(tmp_path / 'a.npz', **{pattern.sub(lambda m: names[m[0]], k): v for k, v in file.items()})
    result = convert.convert_encoder(str(tmp_path / 'a.npz'), str(tmp_path / 'out.pth'), verify=True)
    assert_verified(str(result), 'a plain forward of the JAX layout')


def test_timm(tmp_path, timm_file, monkeypatch, capsys):
    assert run_tool(monkeypatch, 'timm2mmseg.py', timm_file, tmp_path / 'out.pth', '--verify') == 0
    heads = '(num_heads=1 assumed, width // 64: the file does not hold it)'
    assert_verified(capsys.readouterr().out, f'a plain forward of the timm layout {heads}')


@pytest.mark.parametrize(
    'change', [lambda s: s.pop('blocks.0.attn.qkv.bias'), lambda s: s['pos_embed'].resize_(1, 7, 64)]
)
def test_timm_without_qkv_bias_or_square_grid(tmp_path, change):
    state = timm.from_mmseg(random(SegmenterViT(**{**VIT, 'num_layers': 1})).state_dict())
    change(state)
    torch.save(state, tmp_path / 'timm.pth')
    assert convert.convert_encoder(str(tmp_path / 'timm.pth'), str(tmp_path / 'out.pth'), verify=True).verified


def test_official_and_back(tmp_path, official_run, monkeypatch, capsys):
    assert run_tool(monkeypatch, 'segm2mmseg.py', official_run, tmp_path / 'out', '--verify') == 0
    assert_verified(capsys.readouterr().out, 'a plain forward of the official layout')
    files = [tmp_path / 'out' / name for name in ('config.py', 'model.pth')]
    assert run_tool(monkeypatch, 'mmseg2segm.py', *files, tmp_path / 'back', '--verify') == 0
    assert_verified(capsys.readouterr().out, 'a plain forward of the official layout')
    assert sorted(os.listdir(tmp_path / 'back')) == ['checkpoint.pth', 'variant.yml']


def test_heads_of_odd_widths():
    assert [standard_heads(width) for width in (32, 192, 768, 1024, 200)] == [1, 3, 12, 16, 2]


# Wrong ones

FAILED = r'verification failed, largest difference \S+, largest value \S+, in float64 against .*'


def test_wrong_rule_for_augreg(tmp_path, monkeypatch, capsys):
    out = 'Transformer/encoderblock_{i}/MultiHeadDotProductAttention_1/out/kernel'
    rules = [
        type(r)(r.sources, r.target, lambda t: t[0].flatten(0, 1)) if out in r.sources else r for r in augreg.RULES
    ]
    monkeypatch.setattr(augreg, 'RULES', rules)
    assert run_tool(monkeypatch, 'vitjax2mmseg.py', NPZ, tmp_path / 'out.pth', '--verify') == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(FAILED, line) and os.listdir(tmp_path) == []


@pytest.mark.parametrize('pair', [('blocks.{i}.norm1.bias', 'blocks.{i}.norm2.bias'), ('norm.weight', 'norm.bias')])
def test_wrong_rule_for_timm(tmp_path, timm_file, monkeypatch, capsys, pair):
    monkeypatch.setattr(timm, 'RULES', swapped(timm.RULES, *pair))
    assert run_tool(monkeypatch, 'timm2mmseg.py', timm_file, tmp_path / 'out.pth', '--verify') == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(FAILED, line) and os.listdir(tmp_path) == ['timm.pth']


@pytest.mark.parametrize('official_run', ['mask'], indirect=True)
def test_wrong_rule_for_the_official_layout(tmp_path, official_run, monkeypatch):
    right, wrong = official_segmenter.MASK_RULES, untransposed(official_segmenter.MASK_RULES, 'decoder.proj_patch')
    monkeypatch.setattr(official_segmenter, 'MASK_RULES', wrong)
    with pytest.raises(ValueError, match=FAILED):
        convert_official_run(str(official_run), str(tmp_path / 'out'), verify=True)
    assert os.listdir(tmp_path / 'out') == []
    monkeypatch.setattr(official_segmenter, 'MASK_RULES', right)
    convert_official_run(str(official_run), str(tmp_path / 'out'))
    monkeypatch.setattr(official_segmenter, 'MASK_RULES', wrong)
    config, model = (str(tmp_path / 'out' / name) for name in ('config.py', 'model.pth'))
    with pytest.raises(ValueError, match=FAILED):
        write_official_run(config, model, str(tmp_path / 'back'), verify=True)
    assert os.listdir(tmp_path / 'back') == []


@pytest.mark.parametrize('official_run', ['linear'], indirect=True)
def test_wrong_heads_in_the_written_config(tmp_path, official_run, monkeypatch):
    text = converter.config_text
    monkeypatch.setattr(converter, 'config_text', lambda *args: text(*args).replace("'num_heads': 1", "'num_heads': 2"))
    with pytest.raises(ValueError, match=FAILED):
        convert_official_run(str(official_run), str(tmp_path / 'out'), verify=True)


def test_lost_tensor_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(augreg, 'RULES', [r for r in augreg.RULES if r.target != 'ln1.bias'])
    monkeypatch.setattr(augreg, 'DROPPED', (*augreg.DROPPED, 'Transformer/encoder_norm/bias'))
    with pytest.raises(ValueError, match=r'verification failed, keys missing or not known: ln1\.bias'):
        convert.convert_encoder(str(NPZ), str(tmp_path / 'out.pth'), verify=True)


def test_nan_does_not_pass(tmp_path):
    with np.load(NPZ) as file:
        arrays = dict(file)
    arrays['cls'][0, 0, 0] = np.nan
    np.savez(tmp_path / 'a.npz', **arrays)
    with pytest.raises(ValueError, match='verification failed, largest difference nan'):
        convert.convert_encoder(str(tmp_path / 'a.npz'), str(tmp_path / 'out.pth'), verify=True)
