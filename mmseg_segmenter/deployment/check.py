"""Compare an exported network with the model."""

from typing import NamedTuple

import numpy as np

from ..errors import UserError

# Largest difference from float32 logits that rounding explains, in standard deviations of the logits. A network that
# computes labels may give another one only where the logits of both labels are as close as that.
TOLERANCES = {'fp32': 1e-3, 'fp16': 0.05, 'bf16': 0.3}
# Rounding errors are not bounded in half precision, so a few pixels may exceed it.
_OUTLIERS = {'fp32': 0.0, 'fp16': 1e-3, 'bf16': 1e-3}
# int8 has errors of another kind; its effect is told by the scores.
_INT8_EQUAL = 0.9


class Agreement(NamedTuple):
    """How an exported network agrees with the model.

    Attributes:
        equal: share of pixels with equal labels.
        difference: largest difference of logits in standard deviations of the model's. Of a network that computes
            labels: how much larger the model's logit of its own label is than that of the network's label, at most.
        exceeding: share of pixels at which the difference is larger than rounding explains.
        images: number of images.
    """

    equal: float
    difference: float
    exceeding: float
    images: int

    def __str__(self) -> str:
        return (
            f'{100 * self.equal:.3f} % equal labels, logits within {self.difference:.2g} standard deviations, on '
            f'{self.images} image{"s" if self.images > 1 else ""}'
        )


def compare(found: np.ndarray, logits: np.ndarray, precision: str) -> tuple[float, float, float]:
    """Compare what a network returns for one image with the logits of the model.

    Args:
        found: (1, K, H, W) logits, or (1, H, W) labels.
        logits: (1, K, H, W).
        precision: of the network.

    Returns:
        The share of equal labels, the largest difference and the share of pixels that exceed the tolerance, as in
        :class:`Agreement`.
    """
    tolerance = TOLERANCES.get(precision, np.inf)
    scale = max(float(logits.std()), 1e-12)
    if logits.shape[1] == 1:  # one logit says whether a pixel is of the class
        labels = (logits[:, 0] > 0).astype(np.int64)
        other = found if found.ndim == 3 else (found[:, 0] > 0).astype(np.int64)
        apart = np.abs(logits[:, 0]) * (labels != other)
    else:
        labels = logits.argmax(axis=1)
        other = found.astype(np.int64) if found.ndim == 3 else found.argmax(axis=1)
        apart = logits.max(axis=1) - np.take_along_axis(logits, other[:, None], axis=1)[:, 0]
    if found.ndim == 4:
        apart = np.abs(found - logits).max(axis=1)
    apart = apart / scale
    return float((labels == other).mean()), float(apart.max()), float((apart > tolerance).mean())


def judge(parts: list[tuple[float, float, float]], precision: str) -> Agreement:
    """Summarise comparisons of several images, and refuse a network that differs more than rounding explains.

    Args:
        parts: what :func:`compare` returned for each image.
        precision: of the network.

    Raises:
        UserError: it differs more; says by how much.
    """
    equal, difference, exceeding = (np.array(values) for values in zip(*parts, strict=True))
    result = Agreement(float(equal.mean()), float(difference.max()), float(exceeding.mean()), len(parts))
    good = result.equal >= _INT8_EQUAL if precision == 'int8' else result.exceeding <= _OUTLIERS[precision]
    if not good or not np.isfinite(result.difference):
        allowed = (
            f'at least {100 * _INT8_EQUAL:.0f} % equal labels'
            if precision == 'int8'
            else f'{TOLERANCES[precision]:g} standard deviations'
        )
        raise UserError(f'the exported network differs from the model: {result}; expected {allowed} in {precision}')
    return result
