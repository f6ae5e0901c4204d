"""Class embeddings: how similar a model takes its classes to be."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ...errors import UserError


def class_similarity(model: Any) -> Tensor:
    """Return the cosine similarity of the class embeddings.

    Those of a mask transformer are its learned class tokens; those of any
    other head, such as :class:`LinearHead`, are the weights of its classifier.

    Args:
        model: segmentor with K classes.

    Returns:
        (K, K), -1 to 1, with 1 on the diagonal.

    Raises:
        UserError: the head has neither.
    """
    head = model.decode_head
    if hasattr(head, 'cls_emb'):
        embeddings = head.cls_emb[0]  # (K, D)
    elif hasattr(head, 'conv_seg'):
        embeddings = head.conv_seg.weight.flatten(1)  # (K, C)
    else:
        raise UserError(f'decode_head {type(head).__name__} has neither class embeddings nor a classifier (conv_seg)')
    embeddings = F.normalize(embeddings.detach(), dim=1)
    return embeddings @ embeddings.T
