"""Every format given to converters that are for another, cut off, and without or with another tensor: one line each."""

import json
import runpy
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from encoder_files import make_sources
from official import load as load_segmenter
from official import weights as segmenter_weights
from safetensors.torch import load_file, save_file
from test_foundation_models import as_timm, transformers_model
from test_foundation_models import load as load_foundation
from tiny_eomt import official as official_eomt
from tiny_run import save_run, tiny_config

TOOLS = Path(__file__).parents[2] / 'tools' / 'model_converters'


def transformers_file(kind):
    """The tensors of a file, whose names differ from those in memory."""
    with tempfile.TemporaryDirectory() as folder:
        transformers_model(kind).save_pretrained(folder)
        return load_file(Path(folder) / 'model.safetensors')


ENCODERS = {
    'DINOv2': lambda: load_foundation('dinov2')[2],
    'DINOv2 with SwiGLU': lambda: load_foundation('dinov2_reg_swiglu')[2],
    'DINOv3': lambda: load_foundation('dinov3')[2],
    'DINOv2 of timm': lambda: as_timm('dinov2_reg_swiglu')[1],
    'DINOv3 of timm': lambda: as_timm('dinov3_swiglu')[1],
    'DeiT of timm': lambda: {
        key.removeprefix('encoder.'): value
        for key, value in segmenter_weights(load_segmenter('linear')).items()
        if key.startswith('encoder.')
    },
    'ViT of transformers': lambda: transformers_file('vit'),
    'MAE of transformers': lambda: transformers_file('mae'),
    'DINOv2 of transformers': lambda: transformers_file('dinov2'),
    'DINOv3 of transformers': lambda: transformers_file('dinov3'),
}
CONVERTERS = {
    'vit2mmseg.py': 'encoder',
    'segm2mmseg.py': 'run of Segmenter',
    'mmseg2segm.py': 'run of mmseg',
    'eomt2mmseg.py': 'EoMT',
    'sharded2mmseg.py': 'sharded training',
}


@pytest.fixture(scope='module')
def encoders():
    return {name: make() for name, make in ENCODERS.items()}


@pytest.fixture
def refused(monkeypatch, tmp_path):
    """Call a converter; return its one line, after which nothing was written."""

    def call(tool, *sources):
        before = sorted(tmp_path.rglob('*'))
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, sources), str(tmp_path / 'out.pth')])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(TOOLS / tool), run_name='__main__')
        assert isinstance(end.value.code, str) and '\n' not in end.value.code, end.value.code
        assert sorted(tmp_path.rglob('*')) == before
        return end.value.code

    return call


def test_every_format_in_the_wrong_converter(refused, tmp_path, encoders):
    files = {}
    for name, state in encoders.items():
        torch.save(state, tmp_path / f'{name}.pth')
        files[tmp_path / f'{name}.pth'] = 'encoder'
    for name, source in make_sources().items():
        folder = tmp_path / name
        folder.mkdir()
        for file, content in source.files.items():
            (folder / file).write_bytes(content)
        files[folder / next(iter(source.files))] = 'run of Segmenter' if source.official else 'encoder'
    for name in ('dinov2', 'dinov3'):
        torch.save(official_eomt(name)[2], tmp_path / f'EoMT on {name}.pth')
        files[tmp_path / f'EoMT on {name}.pth'] = 'EoMT'
    cfg = tiny_config()
    cfg.model.test_cfg.update(crop_size=(48, 48), stride=(16, 16))
    cfg.model.decode_head = dict(type='LinearHead', in_channels=16, num_classes=5)
    run = save_run(tmp_path / 'mmseg', cfg)
    files[run / 'model.pth'] = 'run of mmseg'
    for tool, kind in CONVERTERS.items():
        for path, found in files.items():
            if found != kind and not (kind == 'encoder' and found == 'run of mmseg'):
                sources = [run / 'config.py', path] if tool == 'mmseg2segm.py' else [path]
                assert path.name in refused(tool, *sources) or path.parent.name in refused(tool, *sources), (tool, path)


@pytest.mark.parametrize('name', ENCODERS)
def test_changed_files(refused, tmp_path, encoders, name):
    """Without a tensor, with one under another name or of another shape, and cut off."""
    state, path = encoders[name], tmp_path / 'a.pth'
    key = next(key for key in state if key.endswith(('norm2.bias', 'layernorm_after.bias')) and '1.' in key)
    rest = {other: value for other, value in state.items() if other != key}
    for changed, named in (
        (rest, key),
        (rest | {f'{key}x': state[key]}, f'{key}x'),
        (rest | {key: state[key][:-1]}, key),
    ):
        torch.save(changed, path)
        line = refused('vit2mmseg.py', path)
        assert 'a.pth' in line and named.split('.', 1)[1] in line, line
    torch.save(state, path)
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert ' is not a readable checkpoint' in refused('vit2mmseg.py', path)


def test_shards(refused, tmp_path, encoders):
    state = encoders['DINOv3']
    keys = list(state)
    parts = {'one.safetensors': keys[::2], 'two.safetensors': keys[1::2]}
    for name, own in parts.items():
        save_file({key: state[key].contiguous() for key in own}, tmp_path / name)
    index = tmp_path / 'model.safetensors.index.json'
    index.write_text(json.dumps(dict(weight_map={key: name for name, own in parts.items() for key in own})))
    shutil.move(tmp_path / 'two.safetensors', tmp_path / 'other.safetensors')
    assert 'two.safetensors' in refused('vit2mmseg.py', index)
    (tmp_path / 'two.safetensors').write_bytes((tmp_path / 'one.safetensors').read_bytes())
    assert 'two.safetensors' in refused('vit2mmseg.py', index)
    (tmp_path / 'two.safetensors').write_bytes((tmp_path / 'other.safetensors').read_bytes()[:-9])
    assert 'two.safetensors' in refused('vit2mmseg.py', index)
