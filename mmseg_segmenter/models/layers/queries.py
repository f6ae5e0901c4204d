"""What an encoder returns of queries that took part in its last blocks."""

from typing import NamedTuple

from torch import Tensor


class QueryFeatures(NamedTuple):
    """Queries and patches after the final norm.

    Attributes:
        queries: (B, Q, C).
        feature_map: (B, C, h, w).
    """

    queries: Tensor
    feature_map: Tensor
