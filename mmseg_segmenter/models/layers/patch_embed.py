"""Resize the kernels of a patch embedding to patches of another size."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import UserError


def resize_patch_embed(weight: Tensor, patch_size: int, mode: str = 'bilinear') -> Tensor:
    """Resize the kernels of a patch embedding so that they respond to resized patches as before.

    A patch is resized with antialiasing. The new kernels minimise the squared difference between their
    response to the resized patch and the response of the old kernels to the patch, in expectation over white noise
    (FlexiViT, CVPR 2023, section 3.4). For larger patches, the responses are equal.

    Args:
        weight: (C, channels, P, P) kernels.
        patch_size: new side of a patch in pixels.
        mode: interpolation of patches, ``'bilinear'`` (FlexiViT) or ``'bicubic'`` (timm).

    Returns:
        (C, channels, patch_size, patch_size) kernels in the dtype of ``weight``.

    Raises:
        UserError: ``patch_size`` is not positive, or the mode is another.
    """
    if patch_size < 1:
        raise UserError(f'patch_size={patch_size}; expected a positive number of pixels')
    if mode not in ('bilinear', 'bicubic'):
        raise UserError(f"resize_patches={mode!r}; expected 'bilinear' or 'bicubic'")
    old = weight.shape[-1]
    if patch_size == old:
        return weight
    basis = torch.eye(old * old, dtype=torch.float64).reshape(-1, 1, old, old)
    resized = F.interpolate(basis, size=(patch_size, patch_size), mode=mode, antialias=True)
    resize = resized.reshape(old * old, -1)  # patch (old * old) @ resize = resized patch
    kernels = torch.linalg.pinv(resize) @ weight.double().flatten(2).mT
    return kernels.mT.reshape(*weight.shape[:2], patch_size, patch_size).to(weight.dtype)
