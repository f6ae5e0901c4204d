"""``augreg://`` and ``http://`` against a server on loopback."""

import base64
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from evil import Evil
from mmengine.runner import CheckpointLoader, load_checkpoint

from mmseg_segmenter import SegmenterViT
from mmseg_segmenter.checkpoints import download, released
from mmseg_segmenter.errors import UserError

NPZ = Path(__file__).parents[1] / 'data' / 'augreg_tiny_i21k.npz'
MODEL = dict(img_size=32, patch_size=8, embed_dims=32, num_layers=2, num_heads=2, final_norm=True)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve ``content`` at ``paths``.

    ``requests`` records (path, Range), and ``cut`` breaks the next answers off after so many bytes. ``validators`` are
    headers that identify the version of the content. ``odd`` replaces headers, by status; None leaves one out.
    ``moved`` redirects paths, and sends ``odd[302]`` with it.
    """

    class Handler(BaseHTTPRequestHandler):
        requests: ClassVar[list[tuple[str, str | None]]] = []
        cut: ClassVar[list[int]] = []
        content = NPZ.read_bytes()
        paths: ClassVar[list[str]] = ['/vit.npz']
        supports_range = True
        supports_if_range = True
        validators: ClassVar[dict[str, str]] = {'ETag': '"1"'}
        odd: ClassVar[dict[int, dict[str, str | None]]] = {}
        moved: ClassVar[dict[str, str]] = {}
        restarts = False  # partial answers begin at 0
        pause = 0.0  # seconds between bytes

        def do_GET(self):
            asked = self.headers.get('Range')
            self.requests.append((self.path, asked))
            if self.path.partition('?')[0] in self.moved:
                self.send_response(302)
                for name, value in {'Location': self.moved[self.path.partition('?')[0]], **self.odd[302]}.items():
                    self.send_header(name, value)
                return self.end_headers()
            if self.path.partition('?')[0] not in self.paths:
                return self.send_error(404)
            start = int(asked.removeprefix('bytes=').rstrip('-')) if asked and self.supports_range else 0
            if_range = self.headers.get('If-Range')
            if self.supports_if_range and if_range and if_range not in self.validators.values():
                start = 0
            if start >= len(self.content):
                return self.send_error(416)
            body = self.content[0 if self.restarts else start :]
            headers = {**self.validators, 'Content-Length': str(len(body))}
            if start:
                headers['Content-Range'] = f'bytes {start}-{len(self.content) - 1}/{len(self.content)}'
            status = 206 if start else 200
            self.send_response(status)
            for name, value in {**headers, **self.odd.get(status, {})}.items():
                if value is not None:
                    self.send_header(name, value)
            self.end_headers()
            body = body[: self.cut.pop(0)] if self.cut else body
            if not self.pause:
                return self.wfile.write(body)
            with contextlib.suppress(OSError):  # the client gives up
                for i in range(len(body)):
                    self.wfile.write(body[i : i + 1])
                    time.sleep(self.pause)

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv('MMSEG_SEGMENTER_AUGREG_URL', f'http://127.0.0.1:{httpd.server_port}')
    monkeypatch.setenv('MMSEG_SEGMENTER_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setattr(download, '_BACKOFF', 0)
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
    assert released.find('augreg://vit.npz') == os.path.join('pretrain', 'vit.npz') and not server.requests


@pytest.mark.parametrize('supports_range', [True, False])
def test_broken_connection_is_resumed(server, tmp_path, supports_range):
    server.supports_range = supports_range
    server.cut[:] = [1000, 5000]
    assert Path(released.find('augreg://vit')).read_bytes() == NPZ.read_bytes()
    # 1000 bytes, then 5000 more (or, without ranges, 5000 anew)
    resumed = f'bytes={6000 if supports_range else 5000}-'
    assert [r for _, r in server.requests] == [None, 'bytes=1000-', resumed]
    assert kept(tmp_path) == ['vit.npz']


def test_connection_that_stays_broken(server, tmp_path):
    server.cut[:] = [100] * download._ATTEMPTS
    with pytest.raises(
        FileNotFoundError, match=r'augreg://vit: download failed \(400 of [\d,]+ bytes came\)\. Download http'
    ):
        released.find('augreg://vit')
    assert kept(tmp_path) == ['vit.npz.part', 'vit.npz.part.json']
    released.find('augreg://vit')  # a later try goes on from there
    assert server.requests[-1][1] == 'bytes=400-' and kept(tmp_path) == ['vit.npz']


def test_part_longer_than_the_file(server, tmp_path):
    (tmp_path / 'cache').mkdir()
    (tmp_path / 'cache' / 'vit.npz.part').write_bytes(b'x' * (len(server.content) + 1))
    note = dict(url=f'{os.environ["MMSEG_SEGMENTER_AUGREG_URL"]}/vit.npz', validator='"1"', total=None)
    (tmp_path / 'cache' / 'vit.npz.part.json').write_text(json.dumps(note))
    assert Path(released.find('augreg://vit')).read_bytes() == NPZ.read_bytes()
    assert [r for _, r in server.requests] == [f'bytes={len(server.content) + 1}-', None]


def test_answer_of_another_kind(server, tmp_path):
    server.content = b'<html>please log in</html>'
    with pytest.raises(FileNotFoundError, match=r'the 26 bytes received are not a readable checkpoint \(.*html'):
        released.find('augreg://vit')
    assert kept(tmp_path) == []


def test_unknown_name(server, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'augreg://nothing: the server answered 404') as error:
        released.find('augreg://nothing')
    assert f'{tmp_path}/pretrain/nothing.npz or {tmp_path}/cache/nothing.npz' in str(error.value)
    assert len(server.requests) == 1


def test_name_with_folders(server):
    with pytest.raises(FileNotFoundError, match='without folders'):
        released.find('augreg://../../etc/passwd')


def test_offline(server, monkeypatch):
    monkeypatch.setenv('MMSEG_SEGMENTER_AUGREG_URL', 'http://127.0.0.1:9')
    with pytest.raises(
        FileNotFoundError, match=r'download failed \(.*refused.*\)\. Download http://127\.0\.0\.1:9/vit\.npz'
    ):
        released.find('augreg://vit')


def test_two_processes_download_once(server, tmp_path):
    code = 'from mmseg_segmenter.checkpoints import released; print(released.find("augreg://vit"))'
    processes = [subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [p.communicate()[0].strip().splitlines()[-1] for p in processes]
    assert outputs == [str(tmp_path / 'cache' / 'vit.npz')] * 2 and len(server.requests) == 1


def test_cache_that_cannot_be_made(server, tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('MMSEG_SEGMENTER_CACHE', str(tmp_path / 'file' / 'cache'))
    with pytest.raises(OSError, match='cannot make the cache folder'):
        released.find('augreg://vit')


def test_damaged_file_in_the_cache_is_named(server, tmp_path):
    (tmp_path / 'cache').mkdir()
    (tmp_path / 'cache' / 'vit.npz').write_bytes(NPZ.read_bytes()[:5000])
    model = SegmenterViT(**MODEL, init_cfg=dict(type='Pretrained', checkpoint='augreg://vit'))
    with pytest.raises(ValueError, match=r'cache/vit\.npz \(5,000 bytes\) is not a readable'):
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
    (name,) = kept(tmp_path)
    assert name.startswith('model-') and name.endswith('.pth')


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
    with pytest.raises(ValueError, match=r'model-\w+\.pth: refused, it holds more than tensors'):
        CheckpointLoader.load_checkpoint(url)
    assert not canary.exists()


@pytest.mark.parametrize(
    ('scheme', 'lookup'),
    [
        ('open-mmlab://', 'get_external_models'),
        ('openmmlab://', 'get_external_models'),
        ('mmcls://', 'get_mmcls_models'),
        ('torchvision://', 'get_torchvision_models'),
        ('modelzoo://', 'get_torchvision_models'),
    ],
)
def test_names_of_released_models_run_no_code(server, url, tmp_path, monkeypatch, scheme, lookup):
    """mmengine looks up their URL; the file is read as any other."""
    canary = tmp_path / 'canary'
    server.content = saved(tmp_path, dict(state_dict={}, extra=Evil(canary)))
    monkeypatch.setattr(f'mmengine.runner.checkpoint.{lookup}', lambda: {'evil': url})
    with pytest.raises(ValueError, match='refused, it holds more than tensors'):
        CheckpointLoader.load_checkpoint(f'{scheme}evil')
    assert not canary.exists()


def test_url_that_answers_something_else(server, url, tmp_path):
    server.content = b'<html>please log in</html>'
    target = rf'{tmp_path}/cache/model-\w+\.pth'
    with pytest.raises(FileNotFoundError, match=rf'26 bytes received are not a readable check.*save it as {target}'):
        CheckpointLoader.load_checkpoint(url)
    assert kept(tmp_path) == []
    with pytest.raises(FileNotFoundError, match=r'other\.pth.*: the server answered 404'):
        CheckpointLoader.load_checkpoint(url.replace('model', 'other'))


def test_urls_with_the_same_last_part_are_two_files(server, url, tmp_path):
    server.paths = ['/one/model.pth', '/two/model.pth']
    values = {}
    for value, folder in enumerate(('one', 'two', 'one')):
        server.content = saved(tmp_path, dict(weight=torch.full((1,), float(value))))
        values[folder] = CheckpointLoader.load_checkpoint(url.replace('zoo', folder))['weight'].item()
    assert values == dict(one=0.0, two=1.0) and len(server.requests) == 2
    server.content = saved(tmp_path, dict(weight=torch.full((1,), 3.0)))
    other_query = url.replace('zoo', 'one').replace('true', 'v3')
    assert CheckpointLoader.load_checkpoint(other_query)['weight'] == 3
    assert len(kept(tmp_path)) == 3


# Hashes that the source tells

WRONG = '0' * 63 + 'a'


def serve_with_hash(server, tmp_path, source, wrong):
    """Serve a checkpoint whose hash the source tells, and return its URL."""
    server.content = saved(tmp_path, dict(weight=torch.ones(5000)))
    sha256 = WRONG if wrong else hashlib.sha256(server.content).hexdigest()
    md5 = base64.b64encode(hashlib.md5(server.content + b'x' * wrong).digest()).decode()
    name = f'model-{sha256[:8] if not wrong else "0000000a"}.pth' if source == 'name' else 'model.pth'
    server.paths = [f'/zoo/{name}']
    if source == 'google':
        server.odd = {200: {'X-Goog-Hash': f'crc32c=AAAAAA==,md5={md5}'}}
    if source == 'redirection':  # the Hugging Face hub
        server.moved = {f'/hub/{name}': f'/zoo/{name}'}
        server.odd = {302: {'X-Linked-ETag': f'"{sha256}"', 'X-Linked-Size': str(len(server.content))}}
    folder = 'hub' if source == 'redirection' else 'zoo'
    return f'{os.environ["MMSEG_SEGMENTER_AUGREG_URL"]}/{folder}/{name}'


@pytest.mark.parametrize('source', ['name', 'google', 'redirection'])
@pytest.mark.parametrize('validators', [{'ETag': '"1"'}, {}], ids=['resumed', 'anew'])
def test_hash_that_the_source_tells(server, tmp_path, source, validators):
    """A resumed file is compared as a whole."""
    url = serve_with_hash(server, tmp_path, source, wrong=False)
    server.validators, server.cut[:] = validators, [3000]
    assert (CheckpointLoader.load_checkpoint(url)['weight'] == 1).all()
    assert (server.requests[-1][1] == 'bytes=3000-') == bool(validators)


@pytest.mark.parametrize(('source', 'algorithm'), [('name', 'sha256'), ('google', 'md5'), ('redirection', 'sha256')])
def test_file_with_another_hash(server, tmp_path, source, algorithm):
    url = serve_with_hash(server, tmp_path, source, wrong=True)
    teller = 'its name' if source == 'name' else 'the server'
    message = rf'bytes received have the {algorithm} \w+, expected \w+ by {teller}'
    with pytest.raises(FileNotFoundError, match=message):
        CheckpointLoader.load_checkpoint(url)
    assert kept(tmp_path) == []


def test_date_in_a_name_is_no_hash(server, tmp_path):
    server.content = saved(tmp_path, dict(weight=torch.ones(1)))
    server.paths = ['/zoo/model-20240131.pth']
    CheckpointLoader.load_checkpoint(f'{os.environ["MMSEG_SEGMENTER_AUGREG_URL"]}/zoo/model-20240131.pth')


# Resuming: never halves of two files


def two_versions(tmp_path):
    """Two files of equal length."""
    return [saved(tmp_path, dict(weight=torch.full((5000,), float(i)))) for i in range(2)]


def interrupted(server, url):
    """Break all attempts of a download off, somewhere among the numbers of :func:`two_versions`."""
    server.cut[:] = [3000] * download._ATTEMPTS
    with pytest.raises(FileNotFoundError, match='download failed'):
        CheckpointLoader.load_checkpoint(url)


@pytest.mark.parametrize(
    'validators',
    [
        ({'ETag': '"1"'}, {'ETag': '"2"'}),
        ({'Last-Modified': 'Mon, 01 Jan 2024 00:00:00 GMT'}, {'Last-Modified': 'Tue, 02 Jan 2024 00:00:00 GMT'}),
        ({'ETag': 'W/"1"'}, {'ETag': 'W/"1"'}),  # weak: equal tags do not mean equal bytes
        ({}, {}),
    ],
    ids=['etag', 'date', 'weak', 'none'],
)
@pytest.mark.parametrize('supports_if_range', [True, False])
def test_file_that_changes_between_two_attempts(server, url, tmp_path, validators, supports_if_range):
    old, new = two_versions(tmp_path)
    server.supports_if_range = supports_if_range
    server.content, server.validators = old, validators[0]
    interrupted(server, url)
    server.content, server.validators = new, validators[1]
    assert (CheckpointLoader.load_checkpoint(url)['weight'] == 1).all()


@pytest.mark.parametrize(
    'content_range', ['bytes 0-{last}/{size}', 'bytes 99-{last}/{size}', 'bytes 100-{last}/{more}', 'lines 1-2/3', '']
)
def test_partial_answer_of_other_bytes(server, url, tmp_path, content_range):
    server.content = saved(tmp_path, dict(weight=torch.ones(5000)))
    size = len(server.content)
    server.odd = {206: {'Content-Range': content_range.format(last=size - 1, size=size, more=size + 1)}}
    server.cut[:] = [100]
    assert (CheckpointLoader.load_checkpoint(url)['weight'] == 1).all()
    assert [r for _, r in server.requests] == [None, 'bytes=100-', None]


def test_partial_answer_from_the_start(server, url, tmp_path):
    """A server that answers 206 with the whole file must not have it appended."""
    server.content = saved(tmp_path, dict(weight=torch.ones(5000)))
    size = len(server.content)
    server.restarts = True
    server.odd = {206: {'Content-Range': f'bytes 0-{size - 1}/{size}'}}
    server.cut[:] = [100]
    assert (CheckpointLoader.load_checkpoint(url)['weight'] == 1).all()


def test_file_damaged_on_the_way(server, url, tmp_path):
    data = bytearray(saved(tmp_path, dict(weight=torch.ones(5000))))
    data[len(data) // 2] ^= 1
    server.content = bytes(data)
    with pytest.raises(FileNotFoundError, match=r'bytes received are not a readable checkpoint \(.*CRC'):
        CheckpointLoader.load_checkpoint(url)
    assert kept(tmp_path) == []


def test_connection_that_breaks_without_content_length(server, url, tmp_path):
    server.content = saved(tmp_path, dict(weight=torch.ones(5000)))
    server.odd = {200: {'Content-Length': None}}
    server.cut[:] = [len(server.content) // 2]
    with pytest.raises(FileNotFoundError, match='bytes received are not a readable checkpoint'):
        CheckpointLoader.load_checkpoint(url)
    assert kept(tmp_path) == []


@pytest.mark.parametrize('length', ['abc', '-1', '1.5', '1e3'])
def test_content_length_that_is_no_number(server, url, length):
    server.odd = {200: {'Content-Length': length}}
    with pytest.raises(FileNotFoundError, match=f"announced Content-Length: '{length}', expected a number of bytes"):
        CheckpointLoader.load_checkpoint(url)
    assert len(server.requests) == 1


def test_download_that_never_ends(server, url, monkeypatch):
    """A byte now and then never exceeds the limit of a single read."""
    monkeypatch.setenv('MMSEG_SEGMENTER_DOWNLOAD_TIMEOUT', '0.3')
    server.pause = 0.02
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match=r'took longer than 0\.3 s \(set MMSEG_SEGMENTER_DOWNLOAD_TIMEOUT'):
        CheckpointLoader.load_checkpoint(url)
    assert time.monotonic() - start < 3


@pytest.mark.parametrize('limit', ['0', '-1', 'nan', 'inf', 'soon'])
def test_time_limit_that_is_no_time(server, url, monkeypatch, limit):
    monkeypatch.setenv('MMSEG_SEGMENTER_DOWNLOAD_TIMEOUT', limit)
    with pytest.raises(ValueError, match=f'MMSEG_SEGMENTER_DOWNLOAD_TIMEOUT={limit}; expected a positive number'):
        CheckpointLoader.load_checkpoint(url)


@pytest.mark.parametrize(
    ('url', 'message'),
    [
        ('https://example.org/zoo/', 'expected the URL of a file'),
        ('https://example.org', 'expected the URL of a file'),
        ('https://example.org/zoo/..', 'expected the URL of a file'),
        ('https://example.org/zoo/.?a=b.pth', 'expected the URL of a file'),
        ('https://example.org/my model.pth', 'without spaces'),
        ('https://example.org/model.pth\n', 'without spaces'),
        ('https://example.org/mödel.pth', 'without spaces and special characters'),
        ('https:///model.pth', 'the name of a host'),
        ('https://:80/model.pth', 'the name of a host'),
        ('https://example.org:port/model.pth', 'not a URL'),
        ('https://[::1/model.pth', 'not a URL'),
    ],
)
def test_malformed_url(url, message):
    with pytest.raises(UserError, match=message) as error:
        CheckpointLoader.load_checkpoint(url)
    assert '\n' not in str(error.value)


def test_url_with_an_overlong_name(server, url, tmp_path):
    server.content = saved(tmp_path, dict(weight=torch.ones(1)))
    server.paths = [f'/zoo/{"m" * 500}.pth']
    assert CheckpointLoader.load_checkpoint(url.replace('model', 'm' * 500))['weight'] == 1
    assert max(map(len, kept(tmp_path))) < 120
