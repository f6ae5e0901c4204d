"""Ask the server of the page as the page does."""

import json
import struct
import urllib.error
import urllib.request
import zlib
from typing import Any


def get(url: str) -> tuple[int, bytes]:
    """Return the status and the content at a URL."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def upload(server: str, content: bytes, name: str = 'photo.png') -> str:
    """Upload a file; return where the server put it."""
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n\r\n%s\r\n--x--\r\n'
    request = urllib.request.Request(
        f'{server}/gradio_api/upload',
        body % (name.encode(), content),
        {'Content-Type': 'multipart/form-data; boundary=x'},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)[0]


def ask(server: str, event: str, page: str, data: dict[str, Any], wait: bool = True) -> Any:
    """Send a request of a page; return the answer. Without ``wait`` the page is closed before, and it is None."""
    config = json.loads(get(f'{server}/config')[1])
    (number,) = [one['id'] for one in config['dependencies'] if any(event in target for target in one['targets'])]
    body = dict(data=[], event_data=data, fn_index=number, trigger_id=None, session_hash=page)
    request = urllib.request.Request(
        f'{server}/gradio_api/queue/join', json.dumps(body).encode(), {'Content-Type': 'application/json'}
    )
    urllib.request.urlopen(request, timeout=30).close()
    with urllib.request.urlopen(f'{server}/gradio_api/queue/data?session_hash={page}', timeout=600) as response:
        for line in response:
            message = json.loads(line[6:]) if line.startswith(b'data: ') else {}
            if message.get('msg') == 'process_starts' and not wait:
                return None
            if message.get('msg') == 'process_completed':
                assert message['success'], message
                return message['output']['data'][0]
    raise AssertionError('no answer')


def png_bomb() -> bytes:
    """Return a PNG of 400 megapixels in less than 100 bytes."""
    head = b'IHDR' + struct.pack('>IIBBBBB', 40_000, 10_000, 8, 0, 0, 0, 0)
    content = b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + head + struct.pack('>I', zlib.crc32(head))
    return content + b'\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xae\x42\x60\x82'
