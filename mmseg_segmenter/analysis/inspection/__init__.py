"""Look inside a model: attention, features of patches, and class embeddings.

All functions leave the model as it is: attention weights are computed beside the fused attention of the model, for the
layer and the tokens that are asked for.
"""

from .attention import attention_rollout, decoder_attention, encoder_attention
from .classes import class_similarity
from .distance import attention_distance, uniform_distance
from .features import feature_colors, feature_similarity, patch_features, patch_grid
from .image import Box, NetworkImage, Patch, network_image

__all__ = [
    'Box',
    'NetworkImage',
    'Patch',
    'attention_distance',
    'attention_rollout',
    'class_similarity',
    'decoder_attention',
    'encoder_attention',
    'feature_colors',
    'feature_similarity',
    'network_image',
    'patch_features',
    'patch_grid',
    'uniform_distance',
]
