"""Patch embeddings resized to patches of another size."""

from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from converters import timm2mmseg
from mmengine.config import ConfigDict
from mmengine.runner.checkpoint import CheckpointLoader
from mmseg.registry import MODELS

from mmseg_segmenter.checkpoints.convert import read_encoder
from mmseg_segmenter.errors import UserError
from mmseg_segmenter.models import SegmenterViT
from mmseg_segmenter.models.layers import resize_patch_embed

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
