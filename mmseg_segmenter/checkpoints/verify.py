"""Is a conversion right? The same image through both layouts, in float64.

The forward passes of the source layouts are short, in plain torch and on the
source's own keys; they share nothing with the key maps, so a tensor that a map
puts in the wrong place, or not transposed, shows. Float64, so that what
differs is the mapping and not rounding.

Shapes: B images (one), N tokens, C width, H heads, d = C / H.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..errors import UserError
from ..models import SegmenterViT
from .architecture import Architecture
from .read import read_tensors

# Of the largest value. Float64 leaves about 1e-14 after 24 blocks; a misplaced tensor changes everything.
TOLERANCE = 1e-9
# JAX, timm and DeiT encoders; the official Segmenter has torch's default.
_ENCODER_EPS, _OFFICIAL_EPS = 1e-6, 1e-5


@dataclass(frozen=True)
class Comparison:
    """Outputs of both layouts.

    Attributes:
        reference: what the outputs were compared with.
        difference: the largest between two outputs.
        magnitude: the largest output.
    """

    reference: str
    difference: float
    magnitude: float

    def __str__(self) -> str:
        return (
            f'largest difference {self.difference:.1e}, largest value {self.magnitude:.1e}, in float64 against '
            f'{self.reference}'
        )


def verify_encoder(source: str, written: str, architecture: Architecture) -> Comparison:
    """Compare the tokens of a foreign encoder and of the converted one.

    Args:
        source: ``.npz``, ``.pth`` or ``.safetensors`` as released.
        written: the file it was converted to.
        architecture: its sizes. Where they lack the heads, which timm files
            do not tell, width // 64 is assumed on both sides.

    Raises:
        ValueError: ``written`` does not load into ``SegmenterViT``, or the
            tokens differ.
    """
    num_heads, note = architecture.num_heads, ''
    if num_heads is None:
        num_heads = _standard_heads(architecture.embed_dims)
        note = f' (num_heads={num_heads} assumed, width // 64: the file does not tell)'
    P, N = architecture.patch_size, architecture.num_patches
    size = architecture.img_size or (P, N * P)
    image = _random_image(architecture.in_channels, size)
    reference, theirs = _source_tokens(source, architecture, num_heads, image)
    model = SegmenterViT(
        img_size=size,
        patch_size=P,
        in_channels=architecture.in_channels,
        embed_dims=architecture.embed_dims,
        num_layers=architecture.num_layers,
        num_heads=num_heads,
        mlp_ratio=architecture.mlp_ratio,
        with_dist_token=architecture.with_dist_token,
        output_cls_token=True,
        final_norm=True,
        norm_cfg=dict(type='LN', eps=_ENCODER_EPS),
    )
    _load(model, written)
    with torch.no_grad():
        feature_map, cls_token = model(image)[0]
    ours = torch.cat((cls_token[:, None], feature_map.flatten(2).transpose(1, 2)), dim=1)
    if architecture.with_dist_token:  # which our model uses and does not return
        theirs = torch.cat((theirs[:, :1], theirs[:, 2:]), dim=1)
    return _compare(reference + note, theirs, ours)


def verify_run(official: str, net_kwargs: Mapping[str, Any], config: str, checkpoint: str) -> Comparison:
    """Compare the logits of an official checkpoint and of a ``Segmenter``.

    Args:
        official: ``checkpoint.pth`` in the official layout.
        net_kwargs: of the ``variant.yml`` beside it.
        config: config of the ``Segmenter``.
        checkpoint: its weights.

    Raises:
        ValueError: ``checkpoint`` does not load into the model of ``config``,
            or the logits differ.
    """
    init_default_scope('mmseg')
    model = MODELS.build(Config.fromfile(config).model)
    _load(model, checkpoint)
    image = _random_image(3, tuple(net_kwargs['image_size']))
    with torch.no_grad():
        ours = model(image)
        theirs = official_logits(read_tensors(official), image, net_kwargs['n_heads'])
    return _compare('a plain forward of the official layout', theirs, ours)


def _standard_heads(width: int) -> int:
    """Heads of 64 channels, or the next larger ones that divide the width."""
    return next(heads for heads in range(max(width // 64, 1), 0, -1) if width % heads == 0)


def _random_image(channels: int, size: tuple[int, ...]) -> Tensor:
    return torch.randn(1, channels, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _load(model: nn.Module, path: str) -> None:
    """Load every tensor of a file, and turn the model to float64.

    Raises:
        ValueError: a tensor does not fit or is missing. The qkv bias may be,
            as in timm's ``qkv_bias=False``: it is 0 then.
    """
    try:
        missing, unexpected = model.load_state_dict(read_tensors(path), strict=False)
    except RuntimeError as error:  # torch's word for another shape
        raise UserError(f'verification failed, {" ".join(str(error).split())}') from None
    wrong = unexpected + [key for key in missing if not key.endswith('in_proj_bias')]
    if wrong:
        raise UserError(f'verification failed, keys missing or not known: {", ".join(wrong)}')
    model.double().eval()


def _compare(reference: str, theirs: Tensor, ours: Tensor) -> Comparison:
    result = Comparison(reference, (theirs - ours).abs().max().item(), theirs.abs().max().item())
    if not result.difference <= TOLERANCE * result.magnitude:  # "not", for NaN
        raise UserError(f'verification failed, {result} (allowed {TOLERANCE:.0e} of the largest value)')
    return result


def _source_tokens(source: str, architecture: Architecture, num_heads: int, image: Tensor) -> tuple[str, Tensor]:
    """Tokens of the source file, and of what: timm where it is installed, else this module."""
    weights = read_tensors(source)
    is_jax = 'embedding/kernel' in weights
    # timm's loader knows the names of released files only
    if not is_jax or _is_released(weights):
        timm_tokens = _timm_tokens(source, weights, architecture, num_heads, image)
        if timm_tokens is not None:
            return timm_tokens
    with torch.no_grad():
        if is_jax:
            return 'a plain forward of the JAX layout', jax_tokens(weights, image)
        return 'a plain forward of the timm layout', _Layers(weights, _ENCODER_EPS).tokens(image, '', num_heads)


def _timm_tokens(
    source: str, weights: Mapping[str, Tensor], architecture: Architecture, num_heads: int, image: Tensor
) -> tuple[str, Tensor] | None:
    """Tokens of timm's model with timm's loader, or None without timm."""
    try:
        import timm
        from timm.models.deit import VisionTransformerDistilled
        from timm.models.vision_transformer import VisionTransformer
    except (ImportError, RuntimeError):  # RuntimeError: torchvision built for another torch
        return None
    model = (VisionTransformerDistilled if architecture.with_dist_token else VisionTransformer)(
        img_size=tuple(image.shape[2:]),
        patch_size=architecture.patch_size,
        in_chans=architecture.in_channels,
        num_classes=0,
        embed_dim=architecture.embed_dims,
        depth=architecture.num_layers,
        num_heads=num_heads,
        mlp_ratio=architecture.mlp_ratio,
        qkv_bias=source.endswith('.npz') or 'blocks.0.attn.qkv.bias' in weights,
    )
    if source.endswith('.npz'):
        model.load_pretrained(source)
    else:
        classifiers = ('head.', 'head_dist.', 'pre_logits.')
        model.load_state_dict({k: v for k, v in weights.items() if not k.startswith(classifiers)})
    with torch.no_grad():
        tokens = model.double().eval().forward_features(image)
    return f'{type(model).__name__} of timm {timm.__version__}', tokens


def _is_released(weights: Mapping[str, Tensor]) -> bool:
    """Do the parts of a block have the numbers of the released files, or those of today's Flax?"""
    return 'Transformer/encoderblock_0/LayerNorm_2/scale' in weights


def _depth(weights: Mapping[str, Tensor], key: str) -> int:
    """Number of blocks that have ``key``, a pattern with the number as ``{}``."""
    return sum(1 for _ in takewhile(lambda i: key.format(i) in weights, count()))


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention; all (B, N, H, d)."""
    weights = torch.einsum('bnhd,bmhd->bhnm', q, k).mul(q.shape[-1] ** -0.5).softmax(-1)
    return torch.einsum('bhnm,bmhd->bnhd', weights, v)


def jax_tokens(weights: Mapping[str, Tensor], image: Tensor) -> Tensor:
    """The Flax ViT on its own layouts, up to the classifier.

    Args:
        weights: arrays of the ``.npz``.
        image: (B, in_channels, H, W) in float64, of the size the position
            embedding is made for.

    Returns:
        (B, 1 + N, C) normalised tokens, the class token first.
    """

    def w(key: str) -> Tensor:
        return weights[key].double()

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w(f'{name}/scale'), w(f'{name}/bias'), _ENCODER_EPS)

    def dense(x: Tensor, name: str) -> Tensor:
        return x @ w(f'{name}/kernel') + w(f'{name}/bias')

    attention, ln2, mlp = ('MultiHeadDotProductAttention_1', 'LayerNorm_2', 'MlpBlock_3')
    if not _is_released(weights):
        attention, ln2, mlp = ('MultiHeadDotProductAttention_0', 'LayerNorm_1', 'MlpBlock_0')
    patches = image.permute(0, 2, 3, 1)  # NHWC, as in JAX
    P = weights['embedding/kernel'].shape[0]
    patches = patches.unflatten(2, (-1, P)).unflatten(1, (-1, P))  # (B, h, P, w, P, channels)
    x = torch.einsum('bipjqc,pqcd->bijd', patches, w('embedding/kernel')).flatten(1, 2) + w('embedding/bias')
    x = torch.cat((w('cls').expand(len(x), -1, -1), x), 1) + w('Transformer/posembed_input/pos_embedding')
    for i in range(_depth(weights, 'Transformer/encoderblock_{}/LayerNorm_0/scale')):
        block = f'Transformer/encoderblock_{i}'
        y = norm(x, f'{block}/LayerNorm_0')
        q, k, v = (
            torch.einsum('bnc,chd->bnhd', y, w(f'{block}/{attention}/{part}/kernel'))
            + w(f'{block}/{attention}/{part}/bias')
            for part in ('query', 'key', 'value')
        )
        out = torch.einsum('bnhd,hdc->bnc', _attend(q, k, v), w(f'{block}/{attention}/out/kernel'))
        x = x + out + w(f'{block}/{attention}/out/bias')
        y = F.gelu(dense(norm(x, f'{block}/{ln2}'), f'{block}/{mlp}/Dense_0'))
        x = x + dense(y, f'{block}/{mlp}/Dense_1')
    return norm(x, 'Transformer/encoder_norm')


@dataclass(frozen=True)
class _Layers:
    """Layers by the names of timm, which are those of the official code too."""

    weights: Mapping[str, Tensor]
    eps: float

    def __getitem__(self, key: str) -> Tensor:
        return self.weights[key].double()

    def linear(self, x: Tensor, name: str) -> Tensor:
        bias = self[f'{name}.bias'] if f'{name}.bias' in self.weights else None
        return F.linear(x, self[f'{name}.weight'], bias)

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self[f'{name}.weight'], self[f'{name}.bias'], self.eps)

    def blocks(self, x: Tensor, prefix: str, num_heads: int) -> Tensor:
        """(B, N, C) through ``PREFIXblocks``."""
        for i in range(_depth(self.weights, f'{prefix}blocks.{{}}.norm1.weight')):
            block = f'{prefix}blocks.{i}'
            qkv = self.linear(self.norm(x, f'{block}.norm1'), f'{block}.attn.qkv')
            q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).unbind(2)
            x = x + self.linear(_attend(q, k, v).flatten(2), f'{block}.attn.proj')
            y = F.gelu(self.linear(self.norm(x, f'{block}.norm2'), f'{block}.mlp.fc1'))
            x = x + self.linear(y, f'{block}.mlp.fc2')
        return x

    def tokens(self, image: Tensor, prefix: str, num_heads: int) -> Tensor:
        """Normalised tokens of an encoder: class, (distillation), patches."""
        weight, bias = self[f'{prefix}patch_embed.proj.weight'], self[f'{prefix}patch_embed.proj.bias']
        x = F.conv2d(image, weight, bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)
        extra = [self[f'{prefix}{name}'] for name in ('cls_token', 'dist_token') if f'{prefix}{name}' in self.weights]
        x = torch.cat([*(token.expand(len(x), -1, -1) for token in extra), x], 1) + self[f'{prefix}pos_embed']
        return self.norm(self.blocks(x, prefix, num_heads), f'{prefix}norm')


def official_logits(weights: Mapping[str, Tensor], image: Tensor, num_heads: int) -> Tensor:
    """The official Segmenter on its own keys, up to its upsampling.

    Args:
        weights: ``checkpoint['model']``.
        image: (B, 3, H, W) in float64, of the size the position embedding is
            made for.
        num_heads: of the encoder. The mask decoder has width // 64
            (``segm/model/factory.py``), or as many if it is narrower.

    Returns:
        (B, K, h, w) logits at patch resolution.
    """
    layers = _Layers(weights, _OFFICIAL_EPS)
    x = layers.tokens(image, 'encoder.', num_heads)[:, 2 if 'encoder.dist_token' in weights else 1 :]
    if 'decoder.head.weight' in weights:
        x = layers.linear(x, 'decoder.head')
    else:
        x = layers.linear(x, 'decoder.proj_dec')
        cls_emb = layers['decoder.cls_emb']
        x = torch.cat((x, cls_emb.expand(len(x), -1, -1)), 1)
        x = layers.norm(layers.blocks(x, 'decoder.', x.shape[-1] // 64 or num_heads), 'decoder.decoder_norm')
        K = cls_emb.shape[1]
        patches, classes = x[:, :-K] @ layers['decoder.proj_patch'], x[:, -K:] @ layers['decoder.proj_classes']
        x = F.normalize(patches, dim=-1) @ F.normalize(classes, dim=-1).transpose(1, 2)
        x = layers.norm(x, 'decoder.mask_norm')
    P = weights['encoder.patch_embed.proj.weight'].shape[-1]
    return x.transpose(1, 2).unflatten(2, (image.shape[2] // P, image.shape[3] // P))
