"""Keep the results that open pages show, in bounded memory."""

import secrets
import threading
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ..analysis.inspection import NetworkImage
from ..apis import InputImage, Prediction
from ..errors import UserError

MAX_BYTES = 1 << 30


@dataclass
class Opinion:
    """What one model makes of an image.

    Attributes:
        prediction: labels of the image.
        confidence: (H, W) uint8, the probability of the label in 1/255.
        network_image: what the encoder sees when attention or features are shown; made for the first of them.
        features: number of a layer, and its patch features (1, C, h, w): those that were shown last.
    """

    prediction: Prediction
    confidence: np.ndarray
    network_image: NetworkImage | None = None
    features: tuple[int, Tensor] | None = None

    @property
    def nbytes(self) -> int:
        """Memory in bytes, without the image."""
        total = self.prediction.labels.nbytes + self.confidence.nbytes
        total += self.network_image.inputs.nbytes if self.network_image is not None else 0
        return total + (self.features[1].nbytes if self.features is not None else 0)


@dataclass
class Result:
    """An image and what the models make of it.

    Attributes:
        image: the image, upright, in its original size.
        opinions: one for each model.
        token: names the result in URLs; cannot be guessed.
    """

    image: InputImage
    opinions: list[Opinion]
    token: str = field(default_factory=lambda: secrets.token_urlsafe(16))

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return self.image.bgr.nbytes + sum(opinion.nbytes for opinion in self.opinions)


class Results:
    """The last result of each open page.

    If they take too much memory, those that were used least recently are
    dropped. May be used from several threads.

    Args:
        max_bytes: memory for all results; the newest one is kept in any case.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._closed: deque[str] = deque(maxlen=1000)  # pages that were closed last
        self._by_page: dict[str, Result] = {}  # the least recently used first

    def __len__(self) -> int:
        return len(self._by_page)

    def put(self, page: str, result: Result) -> None:
        """Keep a result in place of the last one of its page.

        Args:
            page: identifies an open page.
            result: to keep.
        """
        with self._lock:
            self._by_page.pop(page, None)
            if page not in self._closed:  # while its image was segmented
                self._by_page[page] = result
                self._shrink()

    def get(self, token: str) -> Result:
        """Return a result by its token.

        Raises:
            UserError: it is no longer kept.
        """
        with self._lock:
            for page, result in self._by_page.items():
                if result.token == token:
                    self._by_page[page] = self._by_page.pop(page)
                    self._shrink()  # features may have been added to it
                    return result
        raise UserError('this result is no longer in memory; open the image again')

    def forget(self, page: str) -> None:
        """Drop the result of a page that was closed, also one that is still being computed."""
        with self._lock:
            self._closed.append(page)
            self._by_page.pop(page, None)

    def _shrink(self) -> None:
        total = sum(result.nbytes for result in self._by_page.values())
        for page in list(self._by_page)[:-1]:
            if total <= self._max_bytes:
                return
            total -= self._by_page.pop(page).nbytes
