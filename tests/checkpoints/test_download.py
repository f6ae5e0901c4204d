"""``augreg://`` and ``http://`` against a server on loopback."""

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from evil import Evil
from mmengine.runner import CheckpointLoader, load_checkpoint

from mmseg_segmenter import SegmenterViT
from mmseg_segmenter.checkpoints import download

NPZ = Path(__file__).parents[1] / 'data' / 'augreg_tiny_i21k.npz'
MODEL = dict(img_size=32, patch_size=8, embed_dims=32, num_layers=2, num_heads=2, final_norm=True)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves the file as ``vit.npz``; `requests` records (path, Range), `cut` breaks the next answers off."""

    class Handler(BaseHTTPRequestHandler):
        requests: ClassVar[list[tuple[str, str | None]]] = []
        cut: ClassVar[list[int]] = []
        content = NPZ.read_bytes()
        paths: ClassVar[list[str]] = ['/vit.npz']
        supports_range = True

        def do_GET(self):
            asked = self.headers.get('Range')
            self.requests.append((self.path, asked))
            if self.path.partition('?')[0] not in self.paths:
                return self.send_error(404)
            start = int(asked.removeprefix('bytes=').rstrip('-')) if asked and self.supports_range else 0
            if start >= len(self.content):
                return self.send_error(416)
            body = self.content[start:]
            self.send_response(206 if start else 200)
            self.send_header('Content-Length', str(len(body)))
            self.end_headers()
            self.wfile.write(body[: self.cut.pop(0)] if self.cut else body)

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    monkeypatch.setenv('MMSEG_SEGMENTER_AUGREG_URL', f'http://127.0.0.1:{httpd.server_port}')
    monkeypatch.setenv('MMSEG_SEGMENTER_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setattr(download.time, 'sleep', lambda _: None)
    monkeypatch.chdir(tmp_path)
    yield Handler
    httpd.shutdown()
    httpd.server_close()


def kept(tmp_path):
    return sorted(name for name in os.listdir(tmp_path / 'cache') if not name.endswith('.lock'))


def test_cold_then_warm(server, tmp_path):
    for _ in range(2):
        model = SegmenterViT(**MODEL, init_cfg=dict(type='Pretrained', checkpoint='augreg://vit'))
        model.init_weights()
    assert len(server.requests) == 1 and kept(tmp_path) == ['vit.npz']
    assert model.cls_token.std() > 0.5  # the file's, not the initialisation's 0.02


def test_local_file_comes_first(server, tmp_path):
    (tmp_path / 'pretrain').mkdir()
    (tmp_path / 'pretrain' / 'vit.npz').write_bytes(NPZ.read_bytes())
    assert download.locate('augreg://vit.npz') == os.path.join('pretrain', 'vit.npz') and not server.requests


@pytest.mark.parametrize('supports_range', [True, False])
def test_broken_connection_is_resumed(server, tmp_path, supports_range):
    server.supports_range = supports_range
    server.cut[:] = [1000, 5000]
    assert Path(download.locate('augreg://vit')).read_bytes() == NPZ.read_bytes()
    # 1000 bytes, then 5000 more (or, without ranges, 5000 anew)
    resumed = f'bytes={6000 if supports_range else 5000}-'
    assert [r for _, r in server.requests] == [None, 'bytes=1000-', resumed]
    assert kept(tmp_path) == ['vit.npz']


def test_connection_that_stays_broken(server, tmp_path):
    server.cut[:] = [100] * download._ATTEMPTS
    with pytest.raises(
        FileNotFoundError, match=r'augreg://vit: download failed \(400 of [\d,]+ bytes came\)\. Get http'
    ):
        download.locate('augreg://vit')
    assert kept(tmp_path) == ['vit.npz.part']
    download.locate('augreg://vit')  # a later try goes on from there
    assert server.requests[-1][1] == 'bytes=400-' and kept(tmp_path) == ['vit.npz']


def test_part_longer_than_the_file(server, tmp_path):
    (tmp_path / 'cache').mkdir()
    (tmp_path / 'cache' / 'vit.npz.part').write_bytes(b'x' * (len(server.content) + 1))
    assert Path(download.locate('augreg://vit')).read_bytes() == NPZ.read_bytes()


def test_answer_of_another_kind(server, tmp_path):
    server.content = b'<html>please log in</html>'
    with pytest.raises(FileNotFoundError, match=r'the 26 bytes that came are not an \.npz file'):
        download.locate('augreg://vit')
    assert kept(tmp_path) == []


def test_unknown_name(server, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'augreg://nothing: the server answered 404') as error:
        download.locate('augreg://nothing')
    assert f'{tmp_path}/pretrain/nothing.npz or {tmp_path}/cache/nothing.npz' in str(error.value)
    assert len(server.requests) == 1


def test_name_with_folders(server):
    with pytest.raises(FileNotFoundError, match='without folders'):
        download.locate('augreg://../../etc/passwd')


def test_offline(server, monkeypatch):
    monkeypatch.setenv('MMSEG_SEGMENTER_AUGREG_URL', 'http://127.0.0.1:9')
    with pytest.raises(
        FileNotFoundError, match=r'download failed \(.*refused.*\)\. Get http://127\.0\.0\.1:9/vit\.npz'
    ):
        download.locate('augreg://vit')


def test_two_processes_download_once(server, tmp_path):
    code = 'from mmseg_segmenter.checkpoints import download; print(download.locate("augreg://vit"))'
    processes = [subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [p.communicate()[0].strip().splitlines()[-1] for p in processes]
    assert outputs == [str(tmp_path / 'cache' / 'vit.npz')] * 2 and len(server.requests) == 1


def test_cache_that_cannot_be_made(server, tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('MMSEG_SEGMENTER_CACHE', str(tmp_path / 'file' / 'cache'))
    with pytest.raises(OSError, match='cannot make the cache folder'):
        download.locate('augreg://vit')


def test_damaged_file_in_the_cache_is_named(server, tmp_path):
    (tmp_path / 'cache').mkdir()
    (tmp_path / 'cache' / 'vit.npz').write_bytes(NPZ.read_bytes()[:5000])
    model = SegmenterViT(**MODEL, init_cfg=dict(type='Pretrained', checkpoint='augreg://vit'))
    with pytest.raises(ValueError, match=r'cache/vit\.npz \(5,000 bytes\) is not an \.npz file'):
        model.init_weights()
    assert torch.is_tensor(model.cls_token)


@pytest.fixture
def url(server):
    """Of ``model.pth``, whose bytes a test sets as ``server.content``."""
    server.paths = ['/zoo/model.pth']
    return os.environ['MMSEG_SEGMENTER_AUGREG_URL'] + '/zoo/model.pth?download=true'


def saved(tmp_path, content, **options):
    torch.save(content, tmp_path / 'served.pth', **options)
    return (tmp_path / 'served.pth').read_bytes()


@pytest.mark.parametrize('new_format', [True, False])
def test_url_is_downloaded_once_and_named(server, url, tmp_path, new_format):
    content = dict(state_dict={'weight': torch.ones(1, 2), 'bias': torch.zeros(1)})
    server.content = saved(tmp_path, content, _use_new_zipfile_serialization=new_format)
    server.cut[:] = [100]
    for _ in range(2):
        model = torch.nn.Linear(2, 1)
        loaded = load_checkpoint(model, url)['state_dict']
        assert torch.equal(model.weight, torch.ones(1, 2)) and loaded._metadata['']['checkpoint_file'] == url
    assert [r for _, r in server.requests] == [None, 'bytes=100-']
    folder = tmp_path / 'torch' / 'hub' / 'checkpoints'
    assert {path.name for path in folder.iterdir()} == {'model.pth', 'model.pth.lock'}


def test_url_of_an_npz(server):
    model = SegmenterViT(
        **MODEL,
        init_cfg=dict(type='Pretrained', checkpoint=os.environ['MMSEG_SEGMENTER_AUGREG_URL'] + '/vit.npz'),
    )
    model.init_weights()
    assert model.cls_token.std() > 0.5


def test_nothing_behind_a_url_is_executed(server, url, tmp_path):
    canary = tmp_path / 'canary'
    server.content = saved(tmp_path, dict(state_dict={}, extra=Evil(canary)))
    with pytest.raises(ValueError, match=r'model\.pth: refused, it holds more than tensors'):
        CheckpointLoader.load_checkpoint(url)
    assert not canary.exists()


def test_url_that_answers_something_else(server, url, tmp_path):
    server.content = b'<html>please log in</html>'
    target = tmp_path / 'torch' / 'hub' / 'checkpoints' / 'model.pth'
    with pytest.raises(FileNotFoundError, match=rf'the 26 bytes that came are not a checkpoint.*put it at {target}'):
        CheckpointLoader.load_checkpoint(url)
    assert not target.exists()
    with pytest.raises(FileNotFoundError, match=r'other\.pth.*: the server answered 404'):
        CheckpointLoader.load_checkpoint(url.replace('model', 'other'))
