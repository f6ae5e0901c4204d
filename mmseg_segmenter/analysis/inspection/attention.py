"""Attention of the encoder and of the mask transformer decoder.

Shapes: B images, H heads, h * w patches. The encoder has N tokens: prefix tokens such as the class token, then the
patches row by row. The decoder has the patches, then K class embeddings.
"""

from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from .layers import AttentionStack, Query, decoder_stack, encoder_stack


def encoder_attention(model: Any, inputs: Tensor, layer: int = -1, query: Query = None) -> Tensor:
    """Return the attention weights of a layer of the encoder.

    Only the blocks in front of it run, and only the rows that are asked for
    are computed. The model stays as it is.

    Args:
        model: segmentor whose backbone is a :class:`SegmenterViT` or mmseg's
            ``VisionTransformer``, in eval mode.
        inputs: (B, C, H, W), normalised; any size.
        layer: number of the block from 0; negative numbers count from the end.
        query: token(s) that attend, default all. The class token is 0. Patches
            are the last tokens, so ``(row - h) * w + column`` is the patch at
            (row, column). In the last blocks of an ``EoMT``, the queries are
            the first tokens, and the class token follows them.

    Returns:
        (B, H, N, N), from the token of a row to that of a column. With several
        tokens as ``query`` (B, H, number, N), with one (B, H, N).

    Raises:
        UserError: no such layer, or a backbone without self-attention.
    """
    return _weights(encoder_stack(model, inputs), layer, query)


def decoder_attention(model: Any, inputs: Tensor, layer: int = -1, query: Query = None) -> Tensor:
    """Return the attention weights of a layer of the mask transformer.

    Args:
        model: segmentor with a :class:`SegmenterMaskTransformerHead`.
        inputs: as :func:`encoder_attention`.
        layer: as :func:`encoder_attention`.
        query: token(s) that attend, default all. ``k - K`` is the class k, and
            ``row * w + column`` the patch at (row, column).

    Returns:
        (B, H, h * w + K, h * w + K), patches first; with ``query`` as
        :func:`encoder_attention`.

    Raises:
        UserError: no such layer, or another head.
    """
    return _weights(decoder_stack(model, inputs), layer, query)


def _weights(stack: AttentionStack, layer: int, query: Query) -> Tensor:
    number = stack.number(layer)
    return stack.record(number, number)[0].weights(query)


def attention_rollout(
    model: Any, inputs: Tensor, layer: int = -1, query: Query = None, decoder: bool = False
) -> Tensor:
    """Return how much of each token flows into a token through all layers up to one (attention rollout).

    The weights of a layer are averaged over its heads, then with the identity
    for the residual connection, and the layers are multiplied. Computed from
    the last layer backwards, so only the rows asked for are in memory.
    Source: Abnar and Zuidema, Quantifying Attention Flow in Transformers,
    ACL 2020.

    Args:
        model: as :func:`encoder_attention`, or :func:`decoder_attention`.
        inputs: as :func:`encoder_attention`.
        layer: last layer of the product.
        query: token(s) into which the others flow, default all.
        decoder: through the layers of the decoder, from its inputs on, instead
            of those of the encoder.

    Returns:
        (B, N, N). With several tokens as ``query`` (B, number, N), with one
        (B, N). Rows add up to 1.

    Raises:
        UserError: as :func:`encoder_attention` or :func:`decoder_attention`.
    """
    stack = (decoder_stack if decoder else encoder_stack)(model, inputs)
    recorded = stack.record(0, stack.number(layer))
    if recorded[0].tokens.shape != recorded[-1].tokens.shape:
        raise UserError('no rollout through the last blocks of an EoMT, whose queries are not in front of them')
    B, N, _ = recorded[0].tokens.shape
    dtype = torch.promote_types(recorded[0].tokens.dtype, torch.float32)
    rows = torch.eye(N, dtype=dtype, device=inputs.device)[slice(None) if query is None else query]
    flow = rows.reshape(1, -1, N).expand(B, -1, -1)  # (B, rows, N)
    for attention in reversed(recorded):
        through = torch.zeros_like(flow)
        for columns, weights in attention.chunks():
            through += flow[:, :, columns] @ weights.mean(dim=1)
        flow = (flow + through) / 2
    return flow.reshape(B, *rows.shape)
