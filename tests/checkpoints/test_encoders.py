"""AugReg and timm files through the command lines and into the model."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from converters import timm2mmseg
from forked_tool import run_tool
from mmseg.models.backbones.vit import VisionTransformer
from torch.testing import assert_close

from mmseg_segmenter import SegmenterViT
from mmseg_segmenter.checkpoints import convert
from mmseg_segmenter.checkpoints.architecture import Architecture
from mmseg_segmenter.checkpoints.formats import augreg, timm

ROOT = Path(__file__).parents[2]
DATA = ROOT / 'tests' / 'data'
NPZ = DATA / 'augreg_tiny_i21k.npz'
MODEL = dict(img_size=32, patch_size=8, embed_dims=32, num_layers=2, num_heads=2, final_norm=True)
EPS = dict(norm_cfg=dict(type='LN', eps=1e-6))


def arrays():
    with np.load(NPZ) as file:
        return dict(file)


def flax_names(weights):
    new = {'MultiHeadDotProductAttention_1': 'MultiHeadDotProductAttention_0', 'LayerNorm_2': 'LayerNorm_1'}
    new['MlpBlock_3'] = 'MlpBlock_0'
    for old, name in new.items():
        weights = {key.replace(old, name): value for key, value in weights.items()}
    return weights


def save(path, weights):
    np.savez(path, **weights)
    return str(path)


def tokens(model, image):
    with torch.no_grad():
        feature_map, cls_token = model.double().eval()(image)[0]
    return torch.cat((cls_token[:, None], feature_map.flatten(2).transpose(1, 2)), dim=1)


@pytest.mark.parametrize('naming', [lambda w: w, flax_names], ids=['released', 'flax'])
def test_augreg_tokens(tmp_path, naming):
    destination = tmp_path / 'new' / 'folder' / 'vit.pth'
    command = [
        ROOT / 'tools/model_converters/vitjax2mmseg.py',
        save(tmp_path / 'a.npz', naming(arrays())),
    ]
    result = run_tool(*command, destination)
    assert result.returncode == 0, result.stderr
    assert 'ViT-D32/8, 32x32, 2 layers, 2 heads, 0.0 M parameters, cls token' in result.stdout
    assert (
        'mapped 38 tensors to 30; dropped head/bias, head/kernel, pre_logits/bias, pre_logits/kernel' in result.stdout
    )
    model = SegmenterViT(
        **MODEL, **EPS, output_cls_token=True, init_cfg=dict(type='Pretrained', checkpoint=str(destination))
    )
    model.init_weights()
    with np.load(DATA / 'augreg_tiny_i21k_forward.npz') as file:
        image, exact, tanh = (
            torch.from_numpy(file[k]) for k in ('image_nhwc', 'tokens_exact_gelu', 'tokens_tanh_gelu')
        )
    ours = tokens(model, image.permute(0, 3, 1, 2))
    assert_close(ours, exact, atol=3e-6, rtol=0)  # float32 branches in the reference, see tests/data/README.md
    assert (ours - tanh).abs().max() > 1e-4


def test_npz_as_pretrained_weights_needs_no_conversion_step():
    model = SegmenterViT(**{**MODEL, 'img_size': 48}, init_cfg=dict(type='Pretrained', checkpoint=str(NPZ)))
    model.init_weights()
    weights = arrays()
    assert torch.equal(model.cls_token, torch.from_numpy(weights['cls']))
    assert model.pos_embed.shape == (1, 1 + 36, 32)
    assert torch.equal(model.patch_embed.projection.bias, torch.from_numpy(weights['embedding/bias']))


def test_keys_are_mmsegs_plus_the_patch_bias():
    state = convert.read_encoder(str(NPZ)).conversion.state_dict
    theirs = VisionTransformer(**MODEL).state_dict()
    assert state.keys() - theirs.keys() == {'patch_embed.projection.bias'} and not theirs.keys() - state.keys()
    assert all(state[key].shape == theirs[key].shape for key in theirs)


def test_file_loads_in_plain_mmseg(tmp_path):
    convert.convert_encoder(str(NPZ), str(tmp_path / 'vit.pth'))
    content = torch.load(tmp_path / 'vit.pth', weights_only=True)
    assert content['meta']['source'] == 'augreg_tiny_i21k.npz' and len(content['meta']['sha256']) == 64
    theirs = VisionTransformer(
        **MODEL, patch_bias=True, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'vit.pth'))
    )
    theirs.init_weights()
    assert torch.equal(theirs.patch_embed.projection.bias, content['state_dict']['patch_embed.projection.bias'])


@pytest.mark.parametrize('distilled', [False, True])
@pytest.mark.parametrize('wrapped', [False, True])
def test_timm_names(tmp_path, distilled, wrapped):
    model = SegmenterViT(**MODEL, with_dist_token=distilled)
    for param in model.parameters():
        torch.nn.init.normal_(param)
    theirs = timm.from_mmseg(model.state_dict())
    assert {'blocks.1.attn.qkv.weight', 'blocks.0.mlp.fc2.bias', 'norm.weight', 'patch_embed.proj.bias'} <= set(theirs)
    theirs |= {'head.weight': torch.zeros(3, 32), 'head_dist.bias': torch.zeros(3)}
    torch.save(dict(model=theirs) if wrapped else theirs, tmp_path / 'deit.pth')
    command = [
        ROOT / 'tools/model_converters/timm2mmseg.py',
        tmp_path / 'deit.pth',
        tmp_path / 'ours.pth',
    ]
    result = run_tool(*command)
    assert result.returncode == 0, result.stderr
    assert ('DeiT-' in result.stdout and 'cls and dist token' in result.stdout) is distilled
    state = torch.load(tmp_path / 'ours.pth', weights_only=True)['state_dict']
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


# Bad files


def broken(change):
    weights = arrays()
    change(weights)
    return weights


BLOCK = 'Transformer/encoderblock_1/'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda w: w.pop(f'{BLOCK}MlpBlock_3/Dense_0/bias'), rf'missing: {BLOCK}MlpBlock_3/Dense_0/bias'),
        (lambda w: w.update({'extra/kernel': np.zeros(2)}), 'not known: extra/kernel'),
        (
            lambda w: w.update({f'{BLOCK}MlpBlock_3/Dense_1/kernel': np.zeros((64, 32), np.float32)}),
            rf'{BLOCK}MlpBlock_3/Dense_1/kernel: shape \(32, 64\) contradicts the rest, expected \(32, 128\)',
        ),
        (lambda w: w.update(cls=np.zeros((1, 1, 48), np.float32)), r'expected \(48, channels, patch, patch\)'),
        (lambda w: w.update({'head/bias': np.array(['a'])}), r"array 'head/bias' has dtype <U1, expected numbers"),
        (lambda w: w.update({'head/bias': np.array([print], dtype=object)}), "refused, array 'head/bias' is a pickled"),
    ],
)
def test_wrong_content_is_named(tmp_path, change, message):
    path = save(tmp_path / 'a.npz', broken(change))
    with pytest.raises(ValueError, match=message) as error:
        convert.convert_encoder(path, str(tmp_path / 'out.pth'))
    assert path in str(error.value)
    assert os.listdir(tmp_path) == ['a.npz']


@pytest.mark.parametrize('share', [0.0, 0.3, 0.9, 0.999])
def test_truncated_npz(tmp_path, share):
    data = NPZ.read_bytes()
    (tmp_path / 'a.npz').write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=r'a\.npz \([\d,]+ bytes\) is not a readable checkpoint \('):
        convert.read_encoder(str(tmp_path / 'a.npz'))


def test_npz_with_a_damaged_array(tmp_path):
    data = bytearray(NPZ.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 50] = b'\0' * 50
    (tmp_path / 'a.npz').write_bytes(data)
    with pytest.raises(ValueError, match=r'a\.npz \([\d,]+ bytes\) is not a readable checkpoint \(Bad CRC'):
        convert.read_encoder(str(tmp_path / 'a.npz'))


def test_nan_is_a_warning(tmp_path, capsys):
    path = save(tmp_path / 'a.npz', broken(lambda w: w['cls'].__setitem__((0, 0, 3), np.nan)))
    timm2mmseg(path, tmp_path / 'out.pth')
    assert 'warning: ' in (err := capsys.readouterr().err) and 'NaN or infinite values in cls_token' in err


def test_existing_destination_is_kept(tmp_path):
    out = tmp_path / 'out.pth'
    out.write_text('mine')
    with pytest.raises(SystemExit) as stop:
        timm2mmseg(NPZ, out)
    assert 'out.pth exists; use --force' in str(stop.value.code) and out.read_text() == 'mine'
    timm2mmseg(NPZ, out, '--force')
    assert os.listdir(tmp_path) == ['out.pth'] and torch.load(out, weights_only=True)


def test_folder_is_no_destination(tmp_path):
    (tmp_path / 'out.pth').mkdir()
    with pytest.raises(SystemExit) as stop:
        timm2mmseg(NPZ, tmp_path / 'out.pth', '--force')
    assert 'out.pth is a folder, expected the name of a file' in str(stop.value.code)


def test_relative_destination(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    convert.convert_encoder(str(NPZ), 'out.pth')
    assert os.listdir(tmp_path) == ['out.pth'] and torch.load('out.pth', weights_only=True)


@pytest.mark.parametrize(
    ('content', 'message'),
    [(dict(epoch=3), 'found epoch'), ([1], 'found list'), (dict(state_dict={}), 'expected tensors by name')],
)
def test_torch_file_without_tensors(tmp_path, content, message):
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=message):
        convert.read_encoder(str(tmp_path / 'a.pth'))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'a\.npz not found'):
        convert.read_encoder(str(tmp_path / 'a.npz'))


def test_heads_of_augreg():
    assert augreg.num_heads({k: torch.from_numpy(v) for k, v in arrays().items()}) == 2


def test_mlp_ratio_gives_back_the_channels():
    for width in range(16, 1300, 16):
        for channels in (240, 4304, width + 1, 2 * width + 7, 4 * width):
            found = Architecture(width, 1, channels, 16, 3, 4, False, 0)
            assert int(found.mlp_ratio * width) == channels
