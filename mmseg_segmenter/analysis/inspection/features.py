"""Features of patches: the grid of patches, feature maps of a layer, their principal components and similarity.

Shapes: B images, C width, grid of h * w patches.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import encoder_stack
from .recording import record


def patch_grid(model: Any, inputs: Tensor) -> tuple[int, int]:
    """Return the number of patches (h, w) below and beside each other in a batch of images (B, C, H, W)."""
    with torch.no_grad():
        h, w = model.backbone.patch_embed(inputs[:1])[1]
    return int(h), int(w)


def patch_features(model: Any, inputs: Tensor, layer: int = -1) -> Tensor:
    """Return the feature map of the encoder behind a layer; behind the last one, after the final norm.

    Args:
        model: as :func:`encoder_attention`.
        inputs: as :func:`encoder_attention`.
        layer: as :func:`encoder_attention`.

    Returns:
        (B, C, h, w).

    Raises:
        UserError: as :func:`encoder_attention`.
    """
    stack, backbone = encoder_stack(model, inputs), model.backbone
    number = stack.number(layer)
    x_BNC = record(stack.run, [backbone.layers[number]], outputs=True)[0].output
    assert x_BNC is not None
    if number == len(stack.layers) - 1:
        with torch.no_grad():
            x_BNC = getattr(backbone, 'ln1', nn.Identity())(x_BNC)
    h, w = patch_grid(model, inputs)
    return x_BNC[:, -h * w :].transpose(1, 2).unflatten(2, (h, w))


def feature_similarity(features: Tensor, row: int, column: int) -> Tensor:
    """Return the cosine similarity of all patches to one.

    Args:
        features: (B, C, h, w).
        row: of that patch.
        column: of that patch.

    Returns:
        (B, h, w), -1 to 1.
    """
    features = F.normalize(features, dim=1)
    return torch.einsum('bchw,bc->bhw', features, features[:, :, row, column])


def feature_colors(features: Tensor) -> Tensor:
    """Show features as colours: their first three principal components as red, green and blue.

    The components are those of all patches of the batch, so equal colours mean
    similar features in all images. Each is scaled so that its 1st and 99th
    percentile become 0 and 1. Signs are chosen so that the entry of largest
    magnitude in each component is positive.

    Args:
        features: (B, C, h, w).

    Returns:
        (B, h, w, 3), 0 to 1. Components that do not vary are 0.5.
    """
    B, C, h, w = features.shape
    x = features.permute(0, 2, 3, 1).reshape(-1, C).double()  # (B * h * w, C)
    x = x - x.mean(dim=0)
    _, vectors = torch.linalg.eigh(x.T @ x)  # ascending
    axes = F.pad(vectors.flip(1)[:, :3], (0, max(0, 3 - C)))  # (C, 3)
    axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    x = x @ axes
    low, high = x.quantile(torch.tensor([0.01, 0.99]).to(x), dim=0)
    scaled = torch.where(high - low > 1e-9 * x.abs().max().clamp(min=1e-30), (x - low) / (high - low), 0.5)
    return scaled.clamp(0, 1).to(features.dtype).reshape(B, h, w, 3)
