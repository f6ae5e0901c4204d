from .attention import PackedSelfAttention, SelfAttention
from .block import FeedForward, TransformerBlock, drop_path_rates, init_transformer_weights, transformer_blocks
from .cpu_linear import Linear
from .position import resize_pos_embed, square_grid

__all__ = [
    'FeedForward',
    'Linear',
    'PackedSelfAttention',
    'SelfAttention',
    'TransformerBlock',
    'drop_path_rates',
    'init_transformer_weights',
    'resize_pos_embed',
    'square_grid',
    'transformer_blocks',
]
