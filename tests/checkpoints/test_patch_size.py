"""Patch embeddings resized to patches of another size."""

from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from converters import timm2mmseg
from mmengine.config import Config, ConfigDict
from mmengine.runner.checkpoint import CheckpointLoader
from mmseg.registry import MODELS

from mmseg_segmenter.checkpoints.convert import read_encoder
from mmseg_segmenter.checkpoints.formats import timm
from mmseg_segmenter.errors import UserError
from mmseg_segmenter.models import SegmenterViT
from mmseg_segmenter.models.layers import resize_patch_embed

ROOT = Path(__file__).parents[2]
NPZ = Path(__file__).parents[1] / 'data' / 'augreg_tiny_i21k.npz'


def resized(patches, size, mode='bilinear'):
    return F.interpolate(patches, size=(size, size), mode=mode, antialias=True)


def answers(patches, kernels):
    return torch.einsum('ncij,dcij->nd', patches, kernels)


@pytest.mark.parametrize('mode', ['bilinear', 'bicubic'])
def test_larger_patches_get_the_same_answers(mode):
    kernels, patches = torch.randn(5, 3, 8, 8).double(), torch.randn(7, 3, 8, 8).double()
    new = resize_patch_embed(kernels, 16, mode)
    torch.testing.assert_close(answers(resized(patches, 16, mode), new), answers(patches, kernels), rtol=0, atol=1e-10)


def test_pretraining_of_another_patch_size():
    old, new = (SegmenterViT(img_size=4 * p, patch_size=p, embed_dims=16, num_layers=1, num_heads=2) for p in (14, 16))
    state = old.state_dict()
    weight = state['patch_embed.projection.weight']
    with mock.patch.object(CheckpointLoader, 'load_checkpoint', return_value=state):
        new.init_cfg = dict(type='Pretrained', checkpoint='a.pth')
        with pytest.raises(UserError, match=r"a\.pth does not fit .*resize_patches='bicubic'"):
            new.init_weights()
        new.init_cfg = dict(type='Pretrained', checkpoint='a.pth', resize_patches='bicubic')
        new.init_weights()
        assert torch.equal(new.patch_embed.projection.weight, resize_patch_embed(weight, 16, 'bicubic'))
        assert torch.equal(new.pos_embed, old.pos_embed)
        new.init_cfg = dict(type='Pretrained', checkpoint='a.pth', resize_patches='nearest')
        with pytest.raises(UserError, match=r"resize_patches='nearest'; expected 'bilinear' or 'bicubic'"):
            new.init_weights()


def test_dinov2_becomes_the_encoder_of_eomt(tmp_path, monkeypatch):
    """As configs/eomt name it: patches of 14 pixels resized to 16, the class token's position added to the token."""
    sizes = dict(embed_dims=16, num_layers=1, num_heads=2, num_registers=4, layer_scale=1.0, final_norm=True)
    old = SegmenterViT(img_size=5 * 14, patch_size=14, **sizes)
    old.init_weights()
    names = timm.from_mmseg(old.state_dict())
    released = {'register_tokens' if key == 'reg_token' else key: value for key, value in names.items()}
    (tmp_path / 'pretrain').mkdir()
    path = tmp_path / 'pretrain/dinov2_vits14_reg4_pretrain.pth'
    torch.save(released | dict(mask_token=torch.zeros(1, 16)), path)
    monkeypatch.chdir(tmp_path)
    config = Config.fromfile(ROOT / 'configs/eomt/eomt_dinov2-s_8xb2-39k_ade20k.py').model.backbone
    new = MODELS.build(
        dict(config, img_size=64, **{key: sizes[key] for key in ('embed_dims', 'num_layers', 'num_heads')})
    )
    new.init_weights()
    kernels = resize_patch_embed(old.patch_embed.projection.weight, 16, 'bicubic')
    assert torch.equal(new.patch_embed.projection.weight, kernels)
    assert torch.equal(new.cls_token, old.cls_token + old.pos_embed[:, :1])
    grid = old.pos_embed[:, 1:].mT.unflatten(2, (5, 5))
    resized_grid = F.interpolate(grid, (4, 4), mode='bicubic', antialias=True).flatten(2).mT
    torch.testing.assert_close(new.pos_embed, resized_grid)
    assert torch.equal(new.register_tokens, old.register_tokens)
    assert torch.equal(new.layers[0].ffn.layers[1].weight, old.layers[0].ffn.layers[1].weight)


def test_smaller_patches_get_the_closest_answers():
    """Least squares: the error is orthogonal to whatever the new kernels can answer."""
    kernels = torch.randn(2, 1, 8, 8).double()
    new = resize_patch_embed(kernels, 4)
    noise = torch.eye(64).double().reshape(64, 1, 8, 8)
    error = answers(noise, kernels) - answers(resized(noise, 4), new)
    assert error.abs().max() > 0.1
    assert (resized(noise, 4).reshape(64, 16).T @ error).abs().max() < 1e-12


def test_shape_and_dtype():
    kernels = torch.randn(4, 3, 16, 16)
    new = resize_patch_embed(kernels, 8)
    assert new.shape == (4, 3, 8, 8) and new.dtype == torch.float32
    assert resize_patch_embed(kernels, 16) is kernels


def test_command_line(tmp_path, capsys):
    """The file loads into a model of that patch, which sees in an enlarged image what the old one saw."""
    paths = {8: tmp_path / 'p8.pth', 16: tmp_path / 'p16.pth'}
    timm2mmseg(NPZ, paths[8])
    timm2mmseg(NPZ, paths[16], '--patch-size', '16')
    assert 'ViT-D32/16, 64x64' in capsys.readouterr().out
    old = read_encoder(str(NPZ)).architecture
    image = torch.randn(1, 3, 32, 32)
    maps = []
    for patch, path in paths.items():
        cfg = ConfigDict(type='SegmenterViT', img_size=4 * patch, patch_size=patch, embed_dims=old.embed_dims,
                         num_layers=old.num_layers, num_heads=2, final_norm=True,
                         init_cfg=dict(type='Pretrained', checkpoint=str(path)))  # fmt: skip
        model = MODELS.build(cfg).eval()
        model.init_weights()
        patches = F.unfold(image, 8, stride=8).mT.reshape(16, 3, 8, 8)
        enlarged = resized(patches, patch).reshape(1, 16, -1).mT
        maps.append(model(F.fold(enlarged, 4 * patch, patch, stride=patch))[0])
    torch.testing.assert_close(maps[1], maps[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ('options', 'word'), [(['0'], 'patch_size=0; expected a positive'), (['16', '--verify'], 'the tokens differ')]
)
def test_wrong_options_are_one_line_and_write_nothing(tmp_path, options, word):
    with pytest.raises(SystemExit) as stop:
        timm2mmseg(NPZ, tmp_path / 'out.pth', '--patch-size', *options)
    (line,) = str(stop.value.code).splitlines()
    assert word in line and not list(tmp_path.iterdir())
