"""``.safetensors`` files: like the .pth, or one line about what is wrong."""

import os
import sys

import pytest
import torch
from safetensors.torch import save_file

from mmseg_segmenter import SegmenterViT
from mmseg_segmenter.checkpoints import convert
from mmseg_segmenter.checkpoints.formats import timm

MODEL = dict(img_size=32, patch_size=8, embed_dims=32, num_layers=2, num_heads=2, final_norm=True)


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=str)
def state(request):
    model = SegmenterViT(**MODEL, with_dist_token=True)
    for param in model.parameters():
        torch.nn.init.normal_(param)
    theirs = timm.from_mmseg(model.state_dict()) | {'head.weight': torch.zeros(3, 32), 'head_dist.bias': torch.zeros(3)}
    return {key: value.to(request.param) for key, value in theirs.items()}


def test_same_tensors_as_from_the_torch_file(tmp_path, state):
    save_file(state, tmp_path / 'a.safetensors')
    torch.save(state, tmp_path / 'a.pth')
    converted = {}
    for name in ('a.safetensors', 'a.pth'):
        convert.convert_encoder(str(tmp_path / name), str(tmp_path / f'{name}.out.pth'), verify=True)
        converted[name] = torch.load(tmp_path / f'{name}.out.pth', weights_only=True)['state_dict']
    one, other = converted.values()
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert all(one[key].dtype == other[key].dtype for key in one)


@pytest.mark.parametrize('state', [torch.float32], indirect=True)
@pytest.mark.parametrize('share', [0.0, 0.001, 0.5, 0.999])
def test_truncated(tmp_path, state, share):
    save_file(state, tmp_path / 'a.safetensors')
    data = (tmp_path / 'a.safetensors').read_bytes()
    (tmp_path / 'a.safetensors').write_bytes(data[: int(share * len(data))])
    with pytest.raises(SystemExit) as stop:
        convert.command_line('', [str(tmp_path / 'a.safetensors'), str(tmp_path / 'out.pth')])
    (line,) = str(stop.value.code).splitlines()
    assert f'{tmp_path}/a.safetensors ({int(share * len(data)):,} bytes) is not a readable checkpoint (' in line
    assert os.listdir(tmp_path) == ['a.safetensors']


def test_another_kind_of_file(tmp_path):
    torch.save({'a': torch.zeros(1)}, tmp_path / 'a.safetensors')
    with pytest.raises(SystemExit) as stop:
        convert.command_line('', [str(tmp_path / 'a.safetensors'), str(tmp_path / 'out.pth')])
    (line,) = str(stop.value.code).splitlines()
    assert line.endswith('a.safetensors is a file written by torch.save, not a .safetensors file: rename it')


@pytest.mark.parametrize('state', [torch.float32], indirect=True)
def test_without_the_package(tmp_path, state, monkeypatch):
    save_file(state, tmp_path / 'a.safetensors')
    for name in [name for name in sys.modules if name.partition('.')[0] == 'safetensors']:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as stop:
        convert.command_line('', [str(tmp_path / 'a.safetensors'), str(tmp_path / 'out.pth')])
    (line,) = str(stop.value.code).splitlines()
    assert line.endswith(f'{tmp_path}/a.safetensors: run pip install safetensors to read it')
