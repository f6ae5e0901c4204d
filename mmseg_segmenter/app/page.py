"""The page itself: a Gradio component with our own HTML, style and script, and the routes that it loads from."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from ..apis import read_image
from ..errors import UserError
from .answers import Answers, Message
from .models import Models
from .pictures import Content, download, picture, shown_pixels, thumbnail
from .results import Results
from .uploads import DEFAULT_LIMITS, Limits

_FOLDER = Path(__file__).parent
_QUEUE = 100  # requests that may wait; the others are refused


def make_blocks(answers: Answers, models: Models, examples: Sequence[str], limits: Limits) -> Any:
    """Return the page as :class:`gradio.Blocks`.

    One request runs at a time, so that memory does not grow with the number of
    visitors; others wait in Gradio's queue.

    Args:
        answers: to the requests of the page.
        models: what it shows.
        examples: paths of images that it offers.
        limits: on uploads.
    """
    import gradio as gr

    def segment(event: gr.EventData, request: gr.Request) -> Message:
        return answers.segment(str(request.session_hash), event._data)

    def look(event: gr.EventData) -> Message:
        return answers.look(event._data)

    def forget(request: gr.Request) -> None:
        answers.forget(str(request.session_hash))

    html, css, script = ((_FOLDER / f'viewer.{kind}').read_text('utf-8') for kind in ('html', 'css', 'js'))
    with gr.Blocks(title='Segmenter', analytics_enabled=False) as blocks:
        viewer = gr.HTML(
            html_template=html,
            css_template=css,
            js_on_load=script,
            apply_default_css=False,
            models=models.describe(),
            examples=[os.path.basename(path) for path in examples],
            limits=dict(megabytes=limits.megabytes, megapixels=limits.megapixels),
        )
        options: dict[str, Any] = dict(
            outputs=viewer,
            show_progress='hidden',
            trigger_mode='multiple',
            concurrency_limit=1,
            concurrency_id='model',
            api_visibility='private',
        )
        viewer.segment(segment, **options)
        viewer.look(look, **options)
        blocks.unload(forget)
    return blocks.queue(max_size=_QUEUE)


def make_app(models: Models, uploads: str, examples: Sequence[str] = (), limits: Limits = DEFAULT_LIMITS) -> Any:
    """Return the page as an ASGI application.

    Args:
        models: what segments.
        uploads: folder of uploaded files, which Gradio fills.
        examples: paths of images that the page offers.
        limits: on uploads.
    """
    import gradio as gr
    from fastapi import FastAPI, HTTPException, Response
    from fastapi.responses import PlainTextResponse

    results, encoding = Results(), threading.Lock()
    thumbnails = [thumbnail(read_image(path)) for path in examples]
    answers = Answers(models, results, uploads, examples, limits)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    def respond(content: Content) -> Any:
        headers = {'Cache-Control': 'private, max-age=3600', 'X-Content-Type-Options': 'nosniff'}
        return Response(content.data, media_type=content.media_type, headers=headers)

    def example(number: int) -> Any:
        if not 0 <= number < len(thumbnails):
            raise HTTPException(404)
        return respond(thumbnails[number])

    def image(token: str) -> Any:
        with encoding:
            return respond(picture(results.get(token).image))

    def file(token: str, model: int, kind: str, opacity: float = 0.5, hidden: str = '') -> Any:
        with encoding:
            opinions = results.get(token).opinions
            if not 0 <= model < len(opinions) or kind not in ('pixels', 'mask', 'labels', 'overlay'):
                raise HTTPException(404)
            if kind == 'pixels':
                return respond(shown_pixels(opinions[model]))
            numbers = [int(number) for number in hidden.split(',') if number.isdecimal()]
            return respond(download(opinions[model].prediction, kind, opacity, numbers))

    def not_found(request: Any, error: Exception) -> Any:
        return PlainTextResponse(str(error), 404)

    app.add_exception_handler(UserError, not_found)
    app.add_api_route('/examples/{number}', example)
    app.add_api_route('/results/{token}/picture', image)
    app.add_api_route('/results/{token}/{model}/{kind}', file)
    blocks = make_blocks(answers, models, examples, limits)
    gr.mount_gradio_app(
        app,
        blocks,
        path='/',
        footer_links=[],
        run_history=False,
        max_file_size=limits.bytes,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        theme=gr.themes.Default(font=['system-ui', 'sans-serif'], font_mono=['ui-monospace', 'monospace']),
    )
    app.state.stop = cast(Any, app.routes[-1]).app.stop_event  # ends the connections of open pages
    return app
