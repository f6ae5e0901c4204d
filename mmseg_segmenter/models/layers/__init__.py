"""Layers of a ViT, one module per file, and the functions that build them."""

from .attention import SelfAttention
from .block import TransformerBlock
from .build import drop_path_rates, init_transformer_weights, transformer_block, transformer_blocks
from .cpu_linear import Linear
from .feed_forward import FeedForward, SwiGLU
from .packed_attention import PackedSelfAttention
from .patch_embed import resize_patch_embed
from .position import resize_pos_embed, square_grid
from .queries import QueryFeatures
from .rope import Rope, RotaryEmbedding, apply_rope

__all__ = [
    'FeedForward',
    'Linear',
    'PackedSelfAttention',
    'QueryFeatures',
    'Rope',
    'RotaryEmbedding',
    'SelfAttention',
    'SwiGLU',
    'TransformerBlock',
    'apply_rope',
    'drop_path_rates',
    'init_transformer_weights',
    'resize_patch_embed',
    'resize_pos_embed',
    'square_grid',
    'transformer_block',
    'transformer_blocks',
]
