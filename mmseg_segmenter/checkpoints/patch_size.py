"""Patch embeddings for patches of another size."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError


def resize_patch_embed(weight: Tensor, patch_size: int) -> Tensor:
    """Kernels that see in patches of another size what the old ones see in theirs.

    Patches are resized bilinearly with antialiasing. Kernels are not images: of all new ones, those whose answer to
    the resized patch is closest, in the mean over white noise, to the answer of the old ones to the patch (FlexiViT,
    CVPR 2023, section 3.4). For larger patches the answers are equal.

    Args:
        weight: (C, channels, P, P).
        patch_size: new P.

    Returns:
        (C, channels, patch_size, patch_size) in the dtype of ``weight``.

    Raises:
        ValueError: ``patch_size`` is not positive.
    """
    if patch_size < 1:
        raise UserError(f'patch_size={patch_size}; expected a positive number of pixels')
    old = weight.shape[-1]
    if patch_size == old:
        return weight
    basis = torch.eye(old * old, dtype=torch.float64).reshape(-1, 1, old, old)
    resized = F.interpolate(basis, size=(patch_size, patch_size), mode='bilinear', antialias=True)
    resize = resized.reshape(old * old, -1)  # patch (old * old) @ resize = resized patch
    kernels = torch.linalg.pinv(resize) @ weight.double().flatten(2).mT
    return kernels.mT.reshape(*weight.shape[:2], patch_size, patch_size).to(weight.dtype)
