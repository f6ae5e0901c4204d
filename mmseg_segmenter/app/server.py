"""Start the server of the page; what ``tools/app.py`` does."""

import argparse
import contextlib
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, NamedTuple

from ..apis import Predictor, read_image
from ..apis.inputs import IMAGE_SUFFIXES
from ..engine import parse_options
from ..errors import MissingFileError, MissingPackageError, UserError
from .models import Models
from .page import make_app
from .uploads import Limits, temporary_files

MAX_EXAMPLES = 24
_FORM = 1 << 20  # bytes that a form takes in addition to its file


class ModelFiles(NamedTuple):
    """Where a model is.

    Attributes:
        config: config file, or folder of a run.
        checkpoint: path or URL; None for the one in the folder.
    """

    config: str
    checkpoint: str | None


def split_models(words: Sequence[str]) -> list[ModelFiles]:
    """Tell configs and checkpoints apart.

    Args:
        words: a config and its checkpoint, or the folder of a run, once or twice.

    Raises:
        UserError: a checkpoint is missing, or there are more than two models.
    """
    rest, models = list(words), []
    while rest:
        config = rest.pop(0)
        is_folder = os.path.isdir(os.path.expanduser(config))
        if is_folder and (not rest or rest[0].endswith('.py') or os.path.isdir(os.path.expanduser(rest[0]))):
            models.append(ModelFiles(config, None))
        elif not rest:
            raise UserError(f'no checkpoint after {config}; expected CONFIG CHECKPOINT [CONFIG CHECKPOINT]')
        else:
            models.append(ModelFiles(config, rest.pop(0)))
    if len(models) > 2:
        raise UserError(f'{len(models)} models; expected one, or two to compare')
    return models


def find_examples(folder: str) -> list[str]:
    """Return the readable images in a folder, by name, at most :data:`MAX_EXAMPLES`.

    Args:
        folder: without its sub-folders.

    Raises:
        UserError: no folder, or no image in it.
    """
    folder = os.path.expanduser(folder)
    if not os.path.isdir(folder):
        raise MissingFileError(f'--examples {folder} is not a folder')
    found: list[str] = []
    for name in sorted(os.listdir(folder)):
        if os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES or len(found) == MAX_EXAMPLES:
            continue
        try:
            read_image(os.path.join(folder, name))
            found.append(os.path.join(folder, name))
        except UserError as error:
            print(f'not an example: {error}', file=sys.stderr)
    if not found:
        raise UserError(f'--examples {folder} has no image; expected files such as photo.jpg')
    return found


def serve(args: argparse.Namespace) -> None:
    """Serve the page until the process is interrupted or terminated.

    Args:
        args: of ``tools/app.py``.

    Raises:
        UserError: an argument is not usable.
        MissingPackageError: Gradio is not installed.
    """
    # Gradio must not call home, which it decides when it is imported.
    os.environ.update(GRADIO_ANALYTICS_ENABLED='False', HF_HUB_OFFLINE='1', HF_HUB_DISABLE_TELEMETRY='1')
    try:
        import gradio  # noqa: F401
        import uvicorn
        from fastapi.middleware.trustedhost import TrustedHostMiddleware
    except ImportError as error:
        raise MissingPackageError(f"{error.name} is missing: pip install 'mmseg_segmenter[app]'") from None

    if args.max_megabytes <= 0 or args.max_megapixels <= 0:
        raise UserError('--max-megabytes and --max-megapixels must be above 0')
    models = split_models(args.models)
    examples = find_examples(args.examples) if args.examples else []
    limits = Limits(args.max_megabytes, args.max_megapixels)
    with _listen(args.host, args.port) as listener:  # before the models, whose loading takes seconds
        predictors = [
            Predictor(
                model.config,
                model.checkpoint,
                device=args.device,
                amp=args.amp,
                cfg_options=parse_options(args.cfg_options),
                allow_partial=args.allow_partial,
            )
            for model in models
        ]
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder of temporary files is removed
        with temporary_files() as folder:
            os.environ['GRADIO_TEMP_DIR'] = folder
            host, port = listener.getsockname()[:2]
            url_host = f'[{host}]' if ':' in host else host
            page = app = make_app(Models(predictors), folder, examples, limits)
            if is_loopback(host):
                # A page elsewhere could name this machine after itself (DNS rebinding), and read the answers.
                app = TrustedHostMiddleware(app, ['localhost', url_host])
            else:
                print(
                    f'Warning: the page has no authentication; whoever reaches port {port} can use it. Without --host '
                    'it is for this machine only.',
                    file=sys.stderr,
                    flush=True,
                )
            listener.listen()  # who opens the page now waits for a moment
            print(f'http://{url_host}:{port}  (Ctrl-C stops)', flush=True)
            app = LimitBody(app, limits.bytes + _FORM)
            server: Any = uvicorn.Server(uvicorn.Config(app, log_level='warning', timeout_graceful_shutdown=2))
            shut_down = server.shutdown

            async def close_pages(sockets: Any = None) -> None:
                page.state.stop.set()
                await shut_down(sockets)

            server.shutdown = close_pages
            server.run(sockets=[listener])


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from the same machine only."""
    return ipaddress.ip_address(host.partition('%')[0]).is_loopback


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:  # getaddrinfo takes it modulo 65536
        raise UserError(f'--port {port}; expected 0 to 65535')
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise UserError(f'cannot listen on --host {host} --port {port}: {error.strerror or error}') from None
    return listener


Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]


class LimitBody:
    """An ASGI application that answers large requests with status 413 before they fill memory or disk.

    Gradio limits each file of a request, but not their number, and not other
    requests.

    Args:
        app: application for the other requests.
        max_bytes: of the body of a request.
    """

    def __init__(self, app: Any, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] != 'http':
            return await self._app(scope, receive, send)
        from fastapi import HTTPException
        from starlette.requests import ClientDisconnect

        length = dict(scope['headers']).get(b'content-length', b'')
        if length.isdigit() and int(length) > self._max_bytes:
            headers = [(b'content-type', b'text/plain'), (b'connection', b'close')]
            await send({'type': 'http.response.start', 'status': 413, 'headers': headers})
            return await send({'type': 'http.response.body', 'body': b'the request is too large'})
        received = 0

        async def limited() -> Scope:
            nonlocal received
            message = await receive()
            received += len(message.get('body', b''))
            if received > self._max_bytes:
                raise HTTPException(413, 'the request is too large')
            return message

        with contextlib.suppress(ClientDisconnect):  # an upload that breaks off is no error of the server
            await self._app(scope, limited, send)
