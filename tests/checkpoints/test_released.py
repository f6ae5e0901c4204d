"""``dinov2://``, ``dinov3://`` and ``hf://``: on disk, in caches, and from a server on loopback."""

import io
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from mmengine.runner import CheckpointLoader
from mmseg.registry import MODELS

from mmseg_segmenter.checkpoints import download, released
from mmseg_segmenter.checkpoints.convert import convert_encoder, to_encoder
from mmseg_segmenter.errors import UserError

DATA = Path(__file__).parents[1] / 'data'
CONFIG = json.dumps(dict(num_attention_heads=2)).encode()


def weights(name='dinov2'):
    with np.load(DATA / f'{name}.npz') as file:
        return {key[3:]: torch.from_numpy(file[key]) for key in file.files if key.startswith('sd/')}


def pth(tensors):
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve ``files``; those below ``/gated`` to ``token`` only. ``elsewhere`` files are redirected to another host."""

    class Handler(BaseHTTPRequestHandler):
        files: ClassVar[dict[str, bytes]] = {}
        token = 'secret'
        requests: ClassVar[list[tuple[str, str | None]]] = []
        elsewhere = ''

        def do_GET(self):
            self.requests.append((self.path, self.headers.get('Authorization')))
            if self.path.startswith('/gated') and self.headers.get('Authorization') != f'Bearer {self.token}':
                return self.send_error(401)
            if self.path not in self.files:
                return self.send_error(404)
            if self.elsewhere and self.path.endswith('.safetensors'):
                self.send_response(302)
                self.send_header('Location', f'{self.elsewhere}/cdn{self.path}')
                self.send_header('Content-Length', '0')
                return self.end_headers()
            self.answer(self.files[self.path])

        def answer(self, content):
            self.send_response(200)
            self.send_header('Content-Length', str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    class Elsewhere(Handler):
        def do_GET(self):
            self.requests.append((self.path, self.headers.get('Authorization')))
            self.answer(self.files[self.path.removeprefix('/cdn')])

    Handler.files, Handler.requests = {}, []
    Elsewhere.files, Elsewhere.requests = Handler.files, Handler.requests
    servers = [ThreadingHTTPServer(('127.0.0.1', 0), kind) for kind in (Handler, Elsewhere)]
    for httpd in servers:
        threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    url, Handler.other = (f'http://127.0.0.1:{httpd.server_port}' for httpd in servers)
    for name in ('HF_TOKEN', 'HF_TOKEN_PATH', 'HF_HUB_CACHE'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('MMSEG_SEGMENTER_DINOV2_URL', url)
    monkeypatch.setenv('HF_ENDPOINT', url)
    monkeypatch.setenv('HF_HOME', str(tmp_path / 'huggingface'))
    monkeypatch.setenv('MMSEG_SEGMENTER_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setattr(download, '_BACKOFF', 0)
    monkeypatch.chdir(tmp_path)
    yield Handler
    for httpd in servers:
        httpd.shutdown()
        httpd.server_close()


def serve(server, repository, **files):
    for name, content in files.items():
        server.files[f'/{repository}/resolve/main/{name.replace("__", ".")}'] = content


def safetensors(tensors):
    return pytest.importorskip('safetensors.torch').save(tensors)


def test_dinov2_is_downloaded_once_and_fills_a_model(server, tmp_path):
    server.files['/dinov2_vits14/dinov2_vits14_pretrain.pth'] = pth(weights())
    encoder = to_encoder('here', weights(), 2)
    for _ in range(2):
        model = MODELS.build(dict(encoder.backbone, init_cfg=dict(type='Pretrained', checkpoint='dinov2://vits14')))
        model.init_weights()
    assert len(server.requests) == 1
    assert torch.equal(model.cls_token, encoder.conversion.state_dict['cls_token'])


def test_registers_are_another_file(server, tmp_path):
    server.files['/dinov2_vitb14/dinov2_vitb14_reg4_pretrain.pth'] = pth(weights('dinov2_reg_swiglu'))
    assert released.find('dinov2://vitb14_reg') == str(tmp_path / 'cache/dinov2_vitb14_reg4_pretrain.pth')


@pytest.mark.parametrize('folder', ['pretrain', 'cache'])
@pytest.mark.parametrize(
    ('name', 'file'),
    [
        ('dinov2://vitl14', 'dinov2_vitl14_pretrain.pth'),
        ('dinov3://vitl16', 'dinov3_vitl16_pretrain_lvd1689m-8aa4cbdd.pth'),
        ('dinov3://vits16', 'dinov3_vits16_pretrain_lvd1689m.pth'),
        ('dinov3://vitl16_sat493m', 'dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth'),
    ],
)
def test_file_on_disk_comes_first(server, tmp_path, folder, name, file):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / file).touch()
    assert Path(released.find(name)).resolve() == tmp_path / folder / file
    assert not server.requests


def test_two_files_of_one_model(server, tmp_path):
    (tmp_path / 'pretrain').mkdir()
    for ending in 'ab':
        (tmp_path / f'pretrain/dinov3_vits16_pretrain_lvd1689m-{ending}.pth').touch()
    with pytest.raises(UserError, match=r'found pretrain/\S+-a\.pth and pretrain/\S+-b\.pth, expected one of them'):
        released.find('dinov3://vits16')


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        (
            'dinov2://vitb16',
            'dinov2://vitb16: unknown name; expected one of vits14, vitb14, vitl14, vitg14, vits14_reg',
        ),
        ('dinov3://l', 'dinov3://l: unknown name; expected one of vits16, vits16plus, vitb16'),
        ('hf://timm', 'hf://timm: expected hf://ORG/NAME or hf://ORG/NAME@REVISION'),
        ('hf://../x', 'expected hf://ORG/NAME'),
        ('hf://a/b@../c', 'expected hf://ORG/NAME'),
        ('hf://a/b/c', 'expected hf://ORG/NAME'),
    ],
)
def test_unknown_name(server, name, message):
    with pytest.raises(UserError) as error:
        CheckpointLoader.load_checkpoint(name)
    assert message in str(error.value) and '\n' not in str(error.value)
    assert not server.requests


def test_repository_of_the_hub(server, tmp_path):
    serve(server, 'org/name', model__safetensors=safetensors(weights()), config__json=CONFIG)
    encoder = convert_encoder('hf://org/name', str(tmp_path / 'out.pth'))
    assert encoder.architecture.num_heads == 2
    assert len(server.requests) == 2
    assert released.find('hf://org/name') == str(tmp_path / 'cache/hf/org/name/main/model.safetensors')
    assert len(server.requests) == 2


@pytest.mark.parametrize('config', [True, False])
def test_shards(server, tmp_path, config):
    tensors = weights()
    names = sorted(tensors)
    parts = {'m-1.safetensors': names[:5], 'm-2.safetensors': names[5:]}
    index = dict(weight_map={key: file for file, keys in parts.items() for key in keys})
    serve(server, 'org/name', model__safetensors__index__json=json.dumps(index).encode())
    for file, keys in parts.items():
        serve(server, 'org/name', **{file: safetensors({key: tensors[key] for key in keys})})
    if config:
        serve(server, 'org/name', config__json=CONFIG)
    found = CheckpointLoader.load_checkpoint('hf://org/name')
    assert len(found['state_dict']) > 20
    (tmp_path / 'cache/hf/org/name/main/m-2.safetensors').unlink()  # the next use gets what is missing
    CheckpointLoader.load_checkpoint('hf://org/name')
    assert [path.rpartition('/')[2] for path, _ in server.requests].count('m-2.safetensors') == 2


def test_index_that_names_files_elsewhere(server, tmp_path):
    index = json.dumps(dict(weight_map={'a': '../../../x.safetensors'})).encode()
    serve(server, 'org/name', model__safetensors__index__json=index)
    with pytest.raises(
        UserError, match=r"shard '../../../x.safetensors'; expected the name of a file beside the index"
    ):
        released.find('hf://org/name')


def test_weights_of_torch(server):
    serve(server, 'org/name', pytorch_model__bin=pth(weights()))
    assert len(CheckpointLoader.load_checkpoint('hf://org/name')) > 20


def test_caches_of_the_hub_and_local_copies(server, tmp_path):
    snapshot = tmp_path / 'huggingface/hub/models--org--name/snapshots/0123abc'
    snapshot.mkdir(parents=True)
    refs = snapshot.parents[1] / 'refs'
    refs.mkdir()
    (refs / 'main').write_text('0123abc')
    (snapshot / 'model.safetensors').touch()
    assert (
        released.find('hf://org/name') == released.find('hf://org/name@0123abc') == str(snapshot / 'model.safetensors')
    )
    (tmp_path / 'pretrain/name').mkdir(parents=True)
    (tmp_path / 'pretrain/name/pytorch_model.bin').touch()
    assert released.find('hf://org/name') == os.path.join('pretrain', 'name', 'pytorch_model.bin')
    assert not server.requests


def test_gated(server, tmp_path, monkeypatch):
    repository = 'gated/name'
    serve(server, repository, model__safetensors=safetensors(weights()), config__json=CONFIG)
    message = (
        rf'hf://gated/name: the server answered 401, it does not exist or is gated\. Ask for access at http\S+/gated/'
        rf'name and set HF_TOKEN, or save its model\.safetensors and config\.json in {tmp_path}/pretrain/name$'
    )
    with pytest.raises(FileNotFoundError, match=message):
        released.find('hf://gated/name')
    monkeypatch.setenv('HF_TOKEN', 'wrong')
    with pytest.raises(FileNotFoundError, match='401, the token in HF_TOKEN has no access to it'):
        released.find('hf://gated/name')
    monkeypatch.delenv('HF_TOKEN')
    (tmp_path / 'huggingface').mkdir()
    (tmp_path / 'huggingface/token').write_text('secret\n')  # as `hf auth login` stores it
    assert released.find('hf://gated/name').endswith('model.safetensors')


def test_token_stays_with_the_hub(server, monkeypatch):
    monkeypatch.setenv('HF_TOKEN', 'secret')
    serve(server, 'gated/name', model__safetensors=safetensors(weights()))
    server.elsewhere = server.other
    assert released.find('hf://gated/name').endswith('model.safetensors')
    tokens = dict(server.requests)
    assert tokens['/gated/name/resolve/main/model.safetensors'] == 'Bearer secret'
    assert tokens['/cdn/gated/name/resolve/main/model.safetensors'] is None


def test_dinov3_says_where_its_files_may_be(server, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        released.find('dinov3://vitl16')
    message = str(error.value)
    assert 'dinov3://vitl16: hf://facebook/dinov3-vitl16-pretrain-lvd1689m: the server answered 404' in message
    assert f'{tmp_path}/pretrain/dinov3-vitl16-pretrain-lvd1689m' in message
    assert f'dinov3_vitl16_pretrain_lvd1689m-*.pth, is taken from {tmp_path}/pretrain too' in message
    assert '\n' not in message


def test_nothing_half_written(server, tmp_path):
    serve(server, 'org/name', model__safetensors=b'<html>', config__json=CONFIG)
    with pytest.raises(FileNotFoundError, match='the 6 bytes received are not a readable checkpoint'):
        released.find('hf://org/name')
    kept = [path.name for path in (tmp_path / 'cache').rglob('*') if path.is_file() and path.suffix != '.lock']
    assert kept == ['config.json']
