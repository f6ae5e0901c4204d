"""Find the attention layers of a model, and compute attention weights from their inputs.

Shapes: B images, N tokens, C width, H heads, d = C / H width of a head.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UserError
from ...models.layers import PackedSelfAttention, Rope
from ...models.segmentors import EoMT
from .recording import record

# Rows of an attention matrix: one (the axis of the rows is dropped), several, or (None) all.
Query = int | slice | Sequence[int] | None
_CHUNK = 1 << 24  # attention weights that are computed at a time


class AttentionInput(NamedTuple):
    """What a self-attention layer was given.

    Attributes:
        layer: the layer, ours or torch's.
        tokens: (B, N, C).
        rope: rotary position embedding, or None.
        attn_mask: as :meth:`PackedSelfAttention.forward`, or None.
    """

    layer: PackedSelfAttention | nn.MultiheadAttention
    tokens: Tensor
    rope: Rope | None = None
    attn_mask: Tensor | None = None

    @torch.no_grad()
    def weights(self, query: Query = None) -> Tensor:
        """Return softmax(q k^T / sqrt(d)), computed in float32 or wider.

        Args:
            query: rows to compute.

        Returns:
            (B, H, rows, N), or (B, H, N) for one row. Rows add up to 1.
        """
        q, k = self._queries_and_keys()
        B, H, N, d = q.shape
        rows = slice(None) if query is None else query
        dtype = torch.promote_types(q.dtype, torch.float32)
        with torch.autocast(q.device.type, enabled=False):
            scores = torch.einsum('bh...d,bhnd->bh...n', q[:, :, rows].to(dtype) * d**-0.5, k.to(dtype))
            if self.attn_mask is not None:
                R = self.attn_mask.shape[-2]  # the tokens behind attend to all
                value = 1.0 if self.attn_mask.dtype == torch.bool else 0.0
                attends = F.pad(self.attn_mask.broadcast_to(B, H, R, N), (0, 0, 0, N - R), value=value)
                mask = attends[:, :, rows]
                scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
            return scores.softmax(dim=-1)

    def chunks(self, first: int = 0) -> Iterator[tuple[slice, Tensor]]:
        """Yield the rows from ``first`` on, a few at a time: which they are, and their weights (B, H, rows, N)."""
        B, N, _ = self.tokens.shape
        step = max(1, _CHUNK // (B * self.layer.num_heads * N))
        for start in range(first, N, step):
            rows = slice(start, min(start + step, N))
            yield rows, self.weights(rows)

    def _queries_and_keys(self) -> tuple[Tensor, Tensor]:
        """Return queries and keys, each (B, H, N, d)."""
        if isinstance(self.layer, PackedSelfAttention):
            q, k, _ = self.layer.heads(self.tokens, self.rope)
        else:
            qkv = F.linear(self.tokens, self.layer.in_proj_weight, self.layer.in_proj_bias)
            q, k, _ = qkv.unflatten(-1, (3, self.layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k


class AttentionStack(NamedTuple):
    """The self-attention layers of an encoder or a decoder.

    Attributes:
        name: ``'encoder'`` or ``'decoder'``.
        layers: from the first to the last.
        run: runs the model as far as all layers are called.
    """

    name: str
    layers: list[nn.Module]
    run: Callable[[], Any]

    def number(self, layer: int) -> int:
        """Return the number of a layer; negative numbers count from the end.

        Raises:
            UserError: no such layer.
        """
        count = len(self.layers)
        if not -count <= layer < count:
            raise UserError(
                f'layer={layer}; expected 0 to {count - 1}, or -1 for the last: the {self.name} has {count}'
            )
        return layer % count

    def record(self, first: int, last: int) -> list[AttentionInput]:
        """Run the model up to layer ``last``, and return what the layers from ``first`` on are given."""
        layers = self.layers[first : last + 1]
        return [
            _attention_input(layer, *call.args, **call.kwargs)
            for layer, call in zip(layers, record(self.run, layers), strict=True)
        ]


def encoder_stack(model: Any, inputs: Tensor) -> AttentionStack:
    """Return the attention layers of the backbone.

    Raises:
        UserError: the backbone has no blocks with self-attention.
    """
    backbone = model.backbone

    def run() -> Any:
        if isinstance(model, EoMT):
            return model.extract_feat(inputs)  # with the queries
        # forward() of the class: hooks are not called in a compiled module.
        return type(backbone).forward(backbone, inputs)

    return AttentionStack('encoder', _attention_layers(backbone, 'backbone'), run)


def num_queries(model: Any, layer: int) -> int:
    """Return how many queries are in front of the tokens in a layer of the encoder: those of an EoMT in its last ones.

    Args:
        model: segmentor.
        layer: as :func:`.encoder_attention`.
    """
    if not isinstance(model, EoMT):
        return 0
    depth, head = model.backbone.num_layers, model.decode_head
    return int(head.num_queries) if layer % depth >= depth - head.num_blocks else 0


def decoder_stack(model: Any, inputs: Tensor) -> AttentionStack:
    """Return the attention layers of the mask transformer.

    Raises:
        UserError: the head is no mask transformer.
    """
    head = model.decode_head
    layers = _attention_layers(head, 'decode_head')
    return AttentionStack('decoder', layers, lambda: type(head).forward(head, model.extract_feat(inputs)))


def _attention_layers(part: nn.Module, key: str) -> list[Any]:
    blocks: Any = getattr(part, 'layers', ())
    layers = [getattr(getattr(block, 'attn', None), 'attn', None) for block in blocks]
    found = [layer for layer in layers if isinstance(layer, PackedSelfAttention | nn.MultiheadAttention)]
    if not found or len(found) < len(layers):
        expected = 'SegmenterViT or VisionTransformer' if key == 'backbone' else 'SegmenterMaskTransformerHead'
        raise UserError(f'{key} {type(part).__name__} has no self-attention; expected {expected}')
    return found


def _attention_input(layer: Any, *args: Any, **kwargs: Any) -> AttentionInput:
    if isinstance(layer, PackedSelfAttention):
        return AttentionInput(layer, *args, **kwargs)
    query = kwargs['query']  # mmcv's MultiheadAttention passes keywords
    return AttentionInput(layer, query if layer.batch_first else query.transpose(0, 1))
