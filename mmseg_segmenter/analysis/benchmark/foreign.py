"""The same ViT from other libraries, to measure the backbone against."""

import importlib
from collections.abc import Mapping
from functools import partial
from typing import Any

from mmengine.config import ConfigDict
from torch import Tensor, nn

from ...checkpoints.formats import timm as timm_format
from ...errors import MissingPackageError

# From timm's names to those of transformers 5, inside a block and outside.
_BLOCK = {
    'norm1': 'layernorm_before',
    'attn.proj': 'attention.o_proj',
    'norm2': 'layernorm_after',
    'mlp.fc1': 'mlp.fc1',
    'mlp.fc2': 'mlp.fc2',
}
_OUTSIDE = {
    'cls_token': 'embeddings.cls_token',
    'pos_embed': 'embeddings.position_embeddings',
    'patch_embed.proj.weight': 'embeddings.patch_embeddings.projection.weight',
    'patch_embed.proj.bias': 'embeddings.patch_embeddings.projection.bias',
    'norm.weight': 'layernorm.weight',
    'norm.bias': 'layernorm.bias',
}


def why_missing(library: str) -> str | None:
    """Return the reason why a library cannot be used, or None if it can.

    Args:
        library: ``'timm'`` or ``'transformers'``.
    """
    try:
        importlib.import_module('timm.models.vision_transformer' if library == 'timm' else 'transformers.models.vit')
    except Exception as error:  # a torchvision that does not match torch raises RuntimeError
        return f'{library} was left out: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""}'
    return None


def require(library: str) -> None:
    """Raise an error if a library cannot be used.

    Raises:
        MissingPackageError: it cannot.
    """
    if reason := why_missing(library):
        raise MissingPackageError(reason)


class ForeignBackbone(nn.Module):
    """A ViT of timm or transformers with the architecture of a ``SegmenterViT`` config.

    Args:
        library: ``'timm'`` or ``'transformers'``.
        backbone: config of the ``SegmenterViT``.
        size: height and width of the images in pixels; both sides are equal
            or the library must accept them.

    Raises:
        ImportError: the library is not installed.
    """

    def __init__(self, library: str, backbone: ConfigDict, size: tuple[int, int]) -> None:
        super().__init__()
        require(library)
        self.library = library
        self.model = _timm_vit(backbone, size) if library == 'timm' else _transformers_vit(backbone, size)

    def forward(self, images: Tensor) -> Tensor:
        """Return the tokens of the patches, (B, N, C), of normalised images (B, 3, H, W)."""
        tokens = self.model(images) if self.library == 'timm' else self.model(images).last_hidden_state
        return tokens[:, 1:]  # without the class token

    def load_mmseg(self, state: Mapping[str, Tensor]) -> bool:
        """Load the state_dict of a ``SegmenterViT``; return False if this release has other names or shapes."""
        weights = timm_format.from_mmseg(state)
        if self.library == 'transformers':
            weights = _timm_to_transformers(weights)
        try:
            self.model.load_state_dict(weights)
        except RuntimeError:
            return False
        return True


def _timm_vit(backbone: ConfigDict, size: tuple[int, int]) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=size,
        patch_size=backbone.patch_size,
        embed_dim=backbone.embed_dims,
        depth=backbone.num_layers,
        num_heads=backbone.num_heads,
        num_classes=0,
        global_pool='',
        norm_layer=partial(nn.LayerNorm, eps=_norm_eps(backbone)),
    )


def _transformers_vit(backbone: ConfigDict, size: tuple[int, int]) -> nn.Module:
    from transformers import ViTConfig, ViTModel

    options: dict[str, Any] = dict(  # not all are arguments of ViTConfig by its types
        image_size=size,
        patch_size=backbone.patch_size,
        hidden_size=backbone.embed_dims,
        num_hidden_layers=backbone.num_layers,
        num_attention_heads=backbone.num_heads,
        intermediate_size=4 * backbone.embed_dims,
        layer_norm_eps=_norm_eps(backbone),
        attn_implementation='sdpa',
    )
    return ViTModel(ViTConfig(**options), add_pooling_layer=False)


def _norm_eps(backbone: ConfigDict) -> float:
    return backbone.get('norm_cfg', {}).get('eps', 1e-5)


def _timm_to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename timm's tensors as transformers 5 has them, and take q, k and v apart."""
    out = {}
    for key, value in state.items():
        if key in _OUTSIDE:
            out[_OUTSIDE[key]] = value
            continue
        _, number, rest = key.split('.', 2)
        part, _, kind = rest.rpartition('.')
        if part == 'attn.qkv':
            for name, rows in zip('qkv', value.chunk(3), strict=True):
                out[f'layers.{number}.attention.{name}_proj.{kind}'] = rows
        else:
            out[f'layers.{number}.{_BLOCK[part]}.{kind}'] = value
    return out
