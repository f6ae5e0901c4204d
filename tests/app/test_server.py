"""The server keeps its limits, and leaves nothing behind."""

import argparse
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from page_client import ask, get, upload
from tiny_run import write_image

from mmseg_segmenter.app.server import find_examples, is_loopback, serve, split_models
from mmseg_segmenter.app.uploads import printable, remove_older, temporary_files
from mmseg_segmenter.errors import MissingFileError, MissingPackageError, UserError


def test_configs_and_checkpoints_are_told_apart(tmp_path):
    folder = str(tmp_path)
    assert split_models(['a.py', 'a.pth']) == [('a.py', 'a.pth')]
    assert split_models(['a.py', 'a.pth', 'b.py', 'https://host/b']) == [('a.py', 'a.pth'), ('b.py', 'https://host/b')]
    assert split_models([folder]) == [(folder, None)]
    assert split_models([folder, folder]) == [(folder, None), (folder, None)]
    assert split_models([folder, 'b.pth']) == [(folder, 'b.pth')]
    assert split_models([folder, 'b.py', 'b.pth']) == [(folder, None), ('b.py', 'b.pth')]
    with pytest.raises(UserError, match=r'no checkpoint after b\.py'):
        split_models(['a.py', 'a.pth', 'b.py'])
    with pytest.raises(UserError, match='3 models'):
        split_models([folder] * 3)


def test_examples_are_the_readable_images_of_a_folder(tmp_path, capsys):
    with pytest.raises(MissingFileError, match='not a folder'):
        find_examples(str(tmp_path / 'missing'))
    (tmp_path / 'notes.txt').write_text('x')
    (tmp_path / 'broken.png').write_text('x')
    with pytest.raises(UserError, match='has no image'):
        find_examples(str(tmp_path))
    write_image(tmp_path / 'b.png')
    write_image(tmp_path / 'a.jpg')
    assert find_examples(str(tmp_path)) == [str(tmp_path / 'a.jpg'), str(tmp_path / 'b.png')]
    assert 'broken.png' in capsys.readouterr().err


def test_names_are_made_printable():
    assert printable('a\nb\x00\u202e.png') == 'a b  .png'
    assert printable('straße 図.png') == 'straße 図.png'
    assert len(printable('x' * 1000)) == 80
    assert printable('\n') == 'image'


def test_loopback():
    assert is_loopback('127.0.0.1') and is_loopback('::1') and is_loopback('127.1.2.3')
    assert not is_loopback('0.0.0.0') and not is_loopback('::') and not is_loopback('192.168.1.2')


def test_old_temporary_files_are_removed(tmp_path):
    old, new = tmp_path / 'a' / 'old', tmp_path / 'b' / 'new'
    for path in (old, new):
        path.parent.mkdir()
        path.touch()
    for path in (old, old.parent):
        os.utime(path, (1000, 1000))
    remove_older(str(tmp_path), 2000)
    assert not old.exists() and new.exists()


def test_the_folder_of_temporary_files_is_removed(tmp_path):
    with pytest.raises(KeyboardInterrupt), temporary_files() as folder:
        Path(folder, 'upload').touch()
        raise KeyboardInterrupt
    assert not Path(folder).exists()


def arguments(folder: Path, **changes: Any) -> argparse.Namespace:
    values = dict(models=[str(folder)], examples=None, host='127.0.0.1', port=0, max_megabytes=1, max_megapixels=1)
    options = dict(device='cpu', amp=False, cfg_options=None, allow_partial=False)
    return argparse.Namespace(**{**values, **options, **changes})


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(port=99999), '--port 99999; expected 0 to 65535'),
        (dict(host='no.such.host.invalid'), 'cannot listen on --host no.such.host.invalid'),
        (dict(max_megabytes=0), '--max-megabytes and --max-megapixels must be above 0'),
        (dict(models=['missing.py', 'x.pth']), 'missing.py'),
        (dict(examples='missing'), '--examples missing is not a folder'),
    ],
)
def test_bad_arguments(run_folder, changes, message):
    pytest.importorskip('gradio')
    with pytest.raises(UserError, match=message):
        serve(arguments(run_folder, **changes))


def test_a_port_that_is_taken(run_folder):
    pytest.importorskip('gradio')
    with socket.create_server(('127.0.0.1', 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f'--port {port}: Address already in use'):
            serve(arguments(run_folder, port=port))


def test_without_gradio_one_line_says_what_to_install(run_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(MissingPackageError) as found:
        serve(arguments(run_folder))
    assert str(found.value) == "gradio is missing: pip install 'mmseg_segmenter[app]'"


class Server(NamedTuple):
    """A server in a process of its own.

    Attributes:
        process: the process.
        url: of the page, without a slash at the end.
        temporary: where it makes its folder of temporary files.
        output: what it writes.
    """

    process: Any
    url: str
    temporary: Path
    output: Path

    def files(self) -> list[Path]:
        return [path for path in self.temporary.rglob('*') if path.is_file()]


def _run(args: argparse.Namespace, temporary: str, output: str) -> None:
    tempfile.tempdir = temporary
    fd = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    sys.stdout, sys.stderr = os.fdopen(1, 'w'), os.fdopen(2, 'w')
    serve(args)


@pytest.fixture
def start(run_folder: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Return a function that starts a server; a fork, because importing the packages takes seconds."""
    pytest.importorskip('gradio')
    started = []

    def start(**changes: Any) -> Server:
        temporary, output = tmp_path / 'temporary', tmp_path / 'output'
        temporary.mkdir()
        args = (arguments(run_folder, **changes), str(temporary), str(output))
        process = multiprocessing.get_context('fork').Process(target=_run, args=args)
        process.start()
        started.append(process)
        port = wait_for(lambda: output.exists() and [line for line in output.read_text().split() if 'http' in line])
        return Server(process, 'http://127.0.0.1:' + port[0].rpartition(':')[2], temporary, output)

    yield start
    for process in started:
        process.kill()
        process.join()


def wait_for(condition: Callable[[], Any], seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def test_a_large_upload_is_refused_and_leaves_no_file(start):
    server = start()
    assert upload(server.url, b'x' * 900_000) in map(str, server.files())
    with pytest.raises(urllib.error.HTTPError) as found:
        upload(server.url, b'x' * 1_500_000)  # within the limit of the request, not of the file
    assert found.value.code == 413
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        upload(server.url, b'x' * 200_000_000)
    with socket.create_connection(server.url[7:].split(':'), timeout=10) as connection:  # without Content-Length
        head = 'POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n'
        connection.sendall(f'{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n'.encode())
        chunk = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n' + b'x' * 500_000 + b'\r\n'
        for _ in range(6):
            connection.sendall(b'%x\r\n%s\r\n' % (len(chunk), chunk))
        assert b' 413 ' in connection.recv(100)
    assert get(server.url)[0] == 200
    assert sum(path.stat().st_size for path in server.files()) < 4_000_000


def test_termination_removes_temporary_files(start):
    server = start()
    upload(server.url, b'x')
    assert server.files()
    with urllib.request.urlopen(f'{server.url}/gradio_api/heartbeat/someone', timeout=10):  # a page is open
        os.kill(server.process.pid, signal.SIGTERM)
        server.process.join(15)
    assert server.process.exitcode == 0
    assert not list(server.temporary.iterdir())
    assert 'Traceback' not in server.output.read_text()


def test_other_machines_are_let_in_with_a_warning(start):
    assert 'no authentication' in start(host='0.0.0.0').output.read_text()


def test_loopback_has_no_warning_and_unknown_pages_are_not_found(start, tmp_path):
    server = start()
    assert 'Warning' not in server.output.read_text()
    for path in ('results/x/picture', 'results/x/0/mask', 'examples/0', 'examples/-1', 'docs'):
        assert get(f'{server.url}/{path}')[0] == 404, path
    secret = tmp_path / 'secret.txt'
    secret.write_text('secret')
    assert get(f'{server.url}/gradio_api/file={secret}')[0] in (403, 404)


def test_requests_under_another_name_are_refused(start):
    """A page elsewhere could otherwise name this machine after itself (DNS rebinding), and read the answers."""
    server = start()
    request = urllib.request.Request(server.url, headers={'Host': 'evil.example'})
    with pytest.raises(urllib.error.HTTPError) as found:
        urllib.request.urlopen(request, timeout=10)
    assert found.value.code == 400


def test_many_uploads_at_once(start):
    """One after the other is segmented; no file is left."""
    server = start()
    image = write_image(server.temporary.parent / 'x.png').read_bytes()
    answers: list[Any] = []

    def visit(number: int) -> None:
        path = upload(server.url, image, f'{number}.png')
        answers.append(ask(server.url, 'segment', f'page{number}', dict(number=number, path=path, name='x.png')))

    visitors = [threading.Thread(target=visit, args=(i,)) for i in range(20)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert sorted(answer['number'] for answer in answers) == list(range(20))
    assert {answer['kind'] for answer in answers} == {'result'}
    assert not server.files()
    assert get(f'{server.url}/results/{answers[3]["token"]}/picture')[1].startswith(b'\xff\xd8')
