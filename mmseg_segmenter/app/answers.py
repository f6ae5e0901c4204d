"""Answer the requests of a page: segment an image, show the attention of a patch."""

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..apis import InputImage, read_image
from ..errors import UserError
from .models import Heat, Models
from .pictures import shown_size
from .results import Results
from .uploads import DEFAULT_LIMITS, Limits, printable, read_upload

Message = dict[str, Any]


class Answers:
    """The requests of a page, and the answers to them. Both are JSON.

    An error is an answer as well: ``{'kind': 'error', 'message': ...}``. Every
    answer has the ``number`` of its request.

    Args:
        models: what segments.
        results: keeps what is shown.
        uploads: folder of uploaded files.
        examples: images that a page offers.
        limits: on uploads.
    """

    def __init__(
        self,
        models: Models,
        results: Results,
        uploads: str,
        examples: Sequence[str] = (),
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._models, self._results = models, results
        self._uploads, self._examples, self._limits = uploads, examples, limits

    def segment(self, page: str, request: Mapping[str, Any]) -> Message:
        """Segment an upload or an example.

        Args:
            page: identifies the open page; its last result is dropped.
            request: ``number``, and either ``path`` and ``name`` of an upload, or the number of an
                ``example``.

        Returns:
            ``kind='result'``, ``token``, ``name``, ``size`` and ``shown`` (height, width),
            ``seconds``, and for each model ``shares`` of its classes.
        """

        def run() -> Message:
            image = self._read(request)
            start = time.perf_counter()
            result = self._models.segment(image)
            seconds = time.perf_counter() - start
            self._results.put(page, result)
            return dict(
                kind='result',
                token=result.token,
                name=printable(image.source),
                size=image.bgr.shape[:2],
                shown=shown_size(image),
                seconds=round(seconds, 2),
                shares=[
                    [[entry.label, entry.share] for entry in opinion.prediction.legend()] for opinion in result.opinions
                ],
            )

        return _answer(request, run)

    def look(self, request: Mapping[str, Any]) -> Message:
        """Show the attention or the features of a patch.

        Args:
            request: ``number``, ``token`` of the result, ``view`` (``'attention'`` or
                ``'similarity'``), ``x`` and ``y`` (0 to 1), ``layer``, and ``head`` (-1 for the
                mean).

        Returns:
            ``kind='heat'``, ``seconds``, and for each model ``maps``: see :func:`_heat_message`,
            or None if it cannot be looked into.
        """

        def run() -> Message:
            result, start = self._results.get(str(request['token'])), time.perf_counter()
            x, y, layer, head = float(request['x']), float(request['y']), int(request['layer']), int(request['head'])
            maps: list[Message | None] = []
            for number, description in enumerate(self._models.describe()):
                if not description['layers']:
                    maps.append(None)
                elif request['view'] == 'attention':
                    heat = self._models.attention(result, number, x, y, layer, None if head < 0 else head)
                    maps.append(_heat_message(heat, 0.0, float(np.quantile(heat.values, 0.995))))
                else:
                    heat = self._models.similarity(result, number, x, y, layer)
                    maps.append(_heat_message(heat, float(heat.values.min()), 1.0))
            return dict(kind='heat', maps=maps, seconds=round(time.perf_counter() - start, 2))

        return _answer(request, run)

    def forget(self, page: str) -> None:
        """Drop what a page shows, because it was closed."""
        self._results.forget(page)

    def _read(self, request: Mapping[str, Any]) -> InputImage:
        if 'example' not in request:
            return read_upload(str(request['path']), self._uploads, str(request['name']), self._limits)
        image = read_image(self._examples[int(request['example'])])
        return InputImage(image.bgr, image.source.rpartition('/')[2])


def _answer(request: Mapping[str, Any], run: Callable[[], Message]) -> Message:
    """Return what ``run`` returns; if it fails, a message for the visitor."""
    try:
        answer = run()
    except UserError as error:
        answer = dict(kind='error', message=' '.join(str(error).splitlines()))
    except Exception:  # a bug, or a request that no page of ours sends: the other visitors must not suffer
        traceback.print_exc()
        answer = dict(kind='error', message='the server failed on this request; its terminal shows why')
    return dict(answer, number=request.get('number'))


def _heat_message(heat: Heat, low: float, high: float) -> Message:
    """Return a heat map for the page.

    Args:
        heat: the map.
        low: value of the darkest colour.
        high: value of the brightest colour; larger ones are cut off.

    Returns:
        ``grid`` (rows, columns), ``values`` row by row, 0 (``low``) to 255 (``high``), ``low``,
        ``high``, ``area`` and ``patch`` as in :class:`Heat`.
    """
    scaled = (heat.values - low) * (255 / max(high - low, 1e-12))
    values = scaled.clip(0, 255).round().astype(np.uint8)
    return dict(grid=values.shape, values=values.ravel().tolist(), low=low, high=high, area=heat.area, patch=heat.patch)
