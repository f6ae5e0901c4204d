#!/usr/bin/env python
"""Send tools/app.py what visitors may send, and look at its memory and temporary files after each.

The model is Seg-S/16 with random weights. Most of the time is that of about 480 predictions of images of 360x480: a
quarter of an hour on two cores.
"""

import argparse
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from mmengine.registry import init_default_scope
from page_client import ask, png_bomb, upload
from tiny_run import save_run, write_image

from mmseg_segmenter.engine import load_config

ROOT = Path(__file__).parent.parent.parent
CONFIG = ROOT / 'configs/segmenter/segmenter_vit-s_mask_1xb8-2k_camvid.py'
# By this much memory may exceed the highest of the steps before in the last one, in MB. It goes up and down by 80 MB.
GROWTH = 50


class Page:
    """A running ``tools/app.py``.

    Attributes:
        url: without a slash at the end.
    """

    def __init__(self, folder: Path) -> None:
        init_default_scope('mmseg')
        run = save_run(folder / 'run', load_config(str(CONFIG)), meta={})
        self._temporary = folder / 'temporary'
        self._temporary.mkdir()
        command = [sys.executable, str(ROOT / 'tools/app.py'), str(run), '--port', '0', '--device', 'cpu']
        env = dict(os.environ, TMPDIR=str(self._temporary))
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = next(line for line in self.process.stdout if line.startswith('http'))
        self.url = line.split()[0]

    def memory(self) -> tuple[float, float]:
        """Return the resident memory now and the highest one since the last call, in MB."""
        fields = dict(line.split(':', 1) for line in Path(f'/proc/{self.process.pid}/status').read_text().splitlines())
        found = int(fields['VmRSS'].split()[0]) / 1e3, int(fields['VmHWM'].split()[0]) / 1e3
        Path(f'/proc/{self.process.pid}/clear_refs').write_text('5')
        return found

    def files(self) -> int:
        return sum(path.is_file() for path in self._temporary.rglob('*'))

    @contextmanager
    def open(self, name: str) -> Iterator[None]:
        """Keep a page open, as a browser does."""
        with urllib.request.urlopen(f'{self.url}/gradio_api/heartbeat/{name}', timeout=600):
            yield

    def send(self, content: bytes, page: str = 'visitor', wait: bool = True) -> str:
        """Upload a file and ask for its segmentation; return the kind or the message of the answer."""
        try:
            path = upload(self.url, content, secrets.token_hex())  # as the page does
        except (urllib.error.URLError, ConnectionError) as error:
            return f'refused ({error})'
        answer = ask(self.url, 'segment', page, dict(number=0, path=path, name='file'), wait)
        return answer and (answer.get('message') or answer['kind'])


def visits(page: Page, image: bytes, count: int) -> None:
    """Open and close a page for each of ``count`` images, one after the other."""
    for _ in range(count):
        name = secrets.token_hex(8)
        with page.open(name):
            assert page.send(image, name) == 'result'


def parallel(page: Page, image: bytes, count: int, wait: bool = True) -> list[Any]:
    """Open ``count`` pages at the same time. Without ``wait`` they are closed while images are segmented or wait."""
    answers: list[Any] = []

    def visit() -> None:
        name = secrets.token_hex(8)
        with page.open(name):
            answers.append(page.send(image, name, wait))

    visitors = [threading.Thread(target=visit) for _ in range(count)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    return answers


def broken_off(page: Page) -> None:
    """Start an upload of 20 MB, and close the connection after 5 MB."""
    with socket.create_connection(page.url.removeprefix('http://').split(':'), timeout=10) as connection:
        head = 'POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20000000\r\n'
        connection.sendall(f'{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n'.encode())
        connection.sendall(
            b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n' + bytes(5_000_000)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--requests', type=int, default=100, help='predictions in each of the last steps')
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = write_image(folder / 'image.png', (360, 480)).read_bytes()
        page = Page(folder)
        try:
            run(page, image, args.requests)
        finally:
            page.process.send_signal(signal.SIGTERM)
            page.process.wait(30)
        assert not page.files(), 'temporary files after the end'


def run(page: Page, image: bytes, requests: int) -> None:
    """Send everything, and print the table."""
    steps: list[tuple[str, Callable[[], Any]]] = [
        ('start', lambda: None),
        ('10 images', lambda: visits(page, image, 10)),
        ('SVG', lambda: page.send(b'<svg xmlns="http://www.w3.org/2000/svg"/>')),
        ('text', lambda: page.send(b'no image')),
        ('200 MB', lambda: page.send(bytes(200_000_000))),
        ('PNG of 400 megapixels', lambda: page.send(png_bomb())),
        ('upload that breaks off', lambda: broken_off(page)),
        ('10 pages closed in the middle', lambda: parallel(page, image, 10, wait=False)),
        ('50 uploads at a time', lambda: parallel(page, image, 50)),
        ('50 more', lambda: parallel(page, image, 50)),
        *((f'{requests} images, step {i}', lambda: visits(page, image, requests)) for i in (1, 2, 3)),
    ]
    print('| | RSS after, MB | highest | files after | answer |\n|---|---|---|---|---|')
    memory = []
    for name, step in steps:
        answer = step()
        time.sleep(20)  # Gradio notices within 15 seconds that a page was closed
        now, highest = page.memory()
        memory.append(now)
        text = '' if answer is None else str(set(answer) if isinstance(answer, list) else answer)
        print(f'| {name} | {now:.0f} | {highest:.0f} | {page.files()} | {text} |', flush=True)
    growth = memory[-1] - max(memory[:-1])
    assert growth < GROWTH, f'{growth:.1f} MB more after {requests} images; expected less than {GROWTH}'


if __name__ == '__main__':
    main()
