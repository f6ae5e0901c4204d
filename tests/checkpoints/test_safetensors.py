"""``.safetensors`` files: like the .pth, or one line about what is wrong."""

import functools
import json
import os
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from converters import timm2mmseg
from mmengine.runner import Runner
from mmseg.apis import init_model
from mmseg.registry import MODELS
from safetensors.torch import load_file, save_file
from zoo import CONFIGS, read_config, shrink, shrink_images

from mmseg_segmenter import SegmenterViT
from mmseg_segmenter.checkpoints import convert
from mmseg_segmenter.checkpoints.formats import timm
from mmseg_segmenter.checkpoints.read import read
from mmseg_segmenter.errors import MissingPackageError, UserError

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
        timm2mmseg(tmp_path / 'a.safetensors', tmp_path / 'out.pth')
    (line,) = str(stop.value.code).splitlines()
    assert f'{tmp_path}/a.safetensors ({int(share * len(data)):,} bytes) is not a readable checkpoint (' in line
    assert os.listdir(tmp_path) == ['a.safetensors']


def test_another_kind_of_file(tmp_path):
    torch.save({'a': torch.zeros(1)}, tmp_path / 'a.safetensors')
    with pytest.raises(SystemExit) as stop:
        timm2mmseg(tmp_path / 'a.safetensors', tmp_path / 'out.pth')
    (line,) = str(stop.value.code).splitlines()
    assert line.endswith('a.safetensors is a file written by torch.save, not a .safetensors file: rename it')


@pytest.mark.parametrize('state', [torch.float32], indirect=True)
def test_without_the_package(tmp_path, state, monkeypatch):
    save_file(state, tmp_path / 'a.safetensors')
    for name in [name for name in sys.modules if name.partition('.')[0] == 'safetensors']:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as stop:
        timm2mmseg(tmp_path / 'a.safetensors', tmp_path / 'out.pth')
    (line,) = str(stop.value.code).splitlines()
    assert line.endswith(f'{tmp_path}/a.safetensors: run pip install safetensors to read it')
    with pytest.raises(MissingPackageError, match='run pip install safetensors'):
        read(str(tmp_path / 'a.safetensors'))


# By every way that takes a checkpoint


def timm_state():
    model = SegmenterViT(**MODEL)
    for param in model.parameters():
        torch.nn.init.normal_(param)
    return model.state_dict(), timm.from_mmseg(model.state_dict()) | {'head.weight': torch.zeros(3, 32)}


def initialised(checkpoint):
    model = SegmenterViT(**MODEL, init_cfg=dict(type='Pretrained', checkpoint=str(checkpoint)))
    model.init_weights()
    return model.state_dict()


def assert_same(one, other):
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize('layout', ['mmseg', 'timm'])
def test_init_cfg(tmp_path, layout):
    ours, theirs = timm_state()
    save_file(theirs if layout == 'timm' else dict(ours), tmp_path / 'a.safetensors')
    assert_same(initialised(tmp_path / 'a.safetensors'), ours)


def shards(folder, tensors, **changes):
    """Write tensors to two files and an index of them, as the Hugging Face libraries do."""
    keys = sorted(tensors)
    names = {key: f'model-{1 + i % 2:05}-of-00002.safetensors' for i, key in enumerate(keys)}
    for name in set(names.values()):
        save_file({key: tensors[key] for key in keys if names[key] == name}, folder / name)
    index = folder / 'model.safetensors.index.json'
    index.write_text(json.dumps(dict(metadata=dict(total_size=1), weight_map={**names, **changes})))
    return index


def test_shards(tmp_path):
    ours, theirs = timm_state()
    assert_same(initialised(shards(tmp_path, theirs)), ours)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'head.bias': 'model-00003-of-00003.safetensors'}, 'model-00003-of-00003.safetensors not found'),
        ({'head.bias': 'model-00001-of-00002.safetensors'}, r"index\.json: shard .* has no tensor 'head\.bias'"),
        ({'head.bias': '../other.safetensors'}, r"shard '\.\./other\.safetensors'; expected the name of a file beside"),
        ({'head.bias': '/etc/passwd'}, "shard '/etc/passwd'; expected the name of a file beside"),
        ({'head.bias': 'pipe'}, 'pipe not found'),
        ({'head.bias': '..'}, r"shard '\.\.'; expected the name of a file beside"),
        ({'head.bias': 'model.safetensors.index.json'}, 'expected the name of a file beside the index'),
        ({'head.bias': 3}, 'JSON without a "weight_map" of file names'),
    ],
)
def test_shards_that_do_not_fit_the_index(tmp_path, changes, message):
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(UserError, match=message):
        read(str(shards(tmp_path, timm_state()[1], **changes)))


def test_a_tensor_in_two_shards(tmp_path):
    """The one in the shard that the index names is read, and what it does not name is not."""
    tensors = timm_state()[1]
    index = shards(tmp_path, tensors)
    other, first = sorted({*json.loads(index.read_text())['weight_map'].values()}, reverse=True)
    key = next(key for key, name in json.loads(index.read_text())['weight_map'].items() if name == first)
    content = load_file(tmp_path / other)
    save_file(content | {key: torch.full_like(tensors[key], 7.0), 'extra': torch.zeros(1)}, tmp_path / other)
    found = read(str(index)).content
    assert found.keys() == tensors.keys() and torch.equal(found[key], tensors[key])


def test_urls(tmp_path, monkeypatch):
    monkeypatch.setenv('MMSEG_SEGMENTER_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    ours, theirs = timm_state()
    (tmp_path / 'served').mkdir()
    save_file(theirs, tmp_path / 'served' / 'vit.safetensors')
    shards(tmp_path / 'served', theirs)
    handler = functools.partial(QuietHandler, directory=str(tmp_path / 'served'))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        for name in ('vit.safetensors', 'model.safetensors.index.json'):
            assert_same(initialised(f'http://127.0.0.1:{server.server_port}/{name}'), ours)
        url = f'http://127.0.0.1:{server.server_port}/vit.safetensors'
        convert.convert_encoder(url, str(tmp_path / 'out.pth'), verify=True)
        server.shutdown()
    converted = torch.load(tmp_path / 'out.pth', weights_only=True)
    assert_same(converted['state_dict'], dict(ours))
    assert converted['meta']['source'] == 'vit.safetensors' and len(converted['meta']['sha256']) == 64


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_init_model_and_load_from(tmp_path):
    """A whole segmentor, in mmseg's layout."""
    cfg = shrink(shrink_images(read_config(CONFIGS / 'segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k-512x512.py')))
    model = MODELS.build(cfg.model)
    for param in model.parameters():
        torch.nn.init.normal_(param)
    path = str(tmp_path / 'a.safetensors')
    save_file(model.state_dict(), path)
    assert_same(init_model(cfg, path, device='cpu').state_dict(), model.state_dict())
    runner = Runner(cfg.model, work_dir=str(tmp_path), load_from=path, default_scope='mmseg', experiment_name='a')
    runner.load_or_resume()
    assert_same(runner.model.state_dict(), model.state_dict())


def test_layout_that_is_not_known_is_named(tmp_path):
    theirs = timm_state()[1]
    del theirs['blocks.1.norm2.weight']
    save_file(theirs, tmp_path / 'a.safetensors')
    with pytest.raises(UserError, match=r'a\.safetensors: cannot convert, keys missing: blocks\.1\.norm2\.weight'):
        initialised(tmp_path / 'a.safetensors')
