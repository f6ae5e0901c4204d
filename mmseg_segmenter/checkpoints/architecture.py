"""Read the architecture of a converted ViT from the shapes of its tensors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..errors import UserError
from ..models.layers import square_grid
from .keymap import listed

_NAMES = {192: 'Ti', 384: 'S', 768: 'B', 1024: 'L', 1280: 'H'}


@dataclass(frozen=True)
class Architecture:
    """Sizes of a ViT encoder.

    Attributes:
        embed_dims: width D.
        num_layers: depth.
        feedforward_channels: hidden width of the feed-forward networks.
        patch_size: side of a patch in pixels.
        in_channels: channels of the image.
        num_patches: rows of ``pos_embed`` without those of class and distillation token; 0 without ``pos_embed``.
        with_dist_token: there is a distillation token (DeiT).
        num_parameters: number of parameters of the encoder.
        num_heads: number of attention heads, or None if the source file does not hold it.
        ffn: ``'mlp'`` or ``'swiglu'``.
        layer_scale: there are layer scales.
        num_registers: number of registers.
        cls_pos_embed: ``pos_embed`` has rows for class and distillation token.
        options: arguments of ``SegmenterViT`` that tensors do not tell.
    """

    embed_dims: int
    num_layers: int
    feedforward_channels: int
    patch_size: int
    in_channels: int
    num_patches: int
    with_dist_token: bool
    num_parameters: int
    num_heads: int | None = None
    ffn: str = 'mlp'
    layer_scale: bool = False
    num_registers: int = 0
    cls_pos_embed: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)

    def backbone(self, eps: float) -> dict[str, Any]:
        """Return the config of the ``SegmenterViT`` that these tensors fill.

        Args:
            eps: of the LayerNorms.
        """
        P, N, M = self.patch_size, self.num_patches, self.feedforward_channels
        config: dict[str, Any] = dict(
            type='SegmenterViT',
            img_size=self.img_size or (P, N * P) if N else 16 * P,  # without pos_embed it is of no effect
            patch_size=P,
            embed_dims=self.embed_dims,
            num_layers=self.num_layers,
            num_heads=self.num_heads or standard_heads(self.embed_dims),
            final_norm=True,
            norm_cfg=dict(type='LN', eps=eps),
        )
        if 4 * self.embed_dims != M:
            config['feedforward_channels'] = M
        if self.layer_scale:
            config['layer_scale'] = 1e-5  # replaced by the tensors
        defaults = dict(in_channels=3, with_dist_token=False, ffn='mlp', num_registers=0, cls_pos_embed=True)
        config |= {name: getattr(self, name) for name, value in defaults.items() if getattr(self, name) != value}
        return config | dict(self.options)

    @property
    def img_size(self) -> tuple[int, int] | None:
        """Height and width in pixels of the square image that ``pos_embed`` is made for, or None if none fits."""
        grid = square_grid(self.num_patches)
        return None if grid is None else (grid[0] * self.patch_size, grid[1] * self.patch_size)

    @property
    def mlp_ratio(self) -> float:
        """Ratio for which ``int(mlp_ratio * embed_dims)``, as models compute it, is ``feedforward_channels``."""
        ratio = self.feedforward_channels / self.embed_dims
        exact = int(ratio * self.embed_dims) == self.feedforward_channels
        return ratio if exact else math.nextafter(ratio, math.inf)

    def __str__(self) -> str:
        name = f'{"DeiT" if self.with_dist_token else "ViT"}-{_NAMES.get(self.embed_dims, f"D{self.embed_dims}")}'
        size = 'x'.join(map(str, self.img_size)) if self.img_size else f'{self.num_patches} patches'
        if not self.num_patches:
            size = 'any size'
        heads = f', {self.num_heads} heads' if self.num_heads else ''
        tokens = 'cls and dist token' if self.with_dist_token else 'cls token'
        tokens += f', {self.num_registers} registers' if self.num_registers else ''
        tokens += ', SwiGLU' if self.ffn == 'swiglu' else ''
        return (
            f'{name}/{self.patch_size}, {size}, {self.num_layers} layers{heads}, '
            f'{self.num_parameters / 1e6:.1f} M parameters, {tokens}'
        )


def read_architecture(
    state: Mapping[str, Tensor],
    origin: Mapping[str, tuple[str, ...]] | None = None,
    num_heads: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Architecture:
    """Read the sizes of an encoder, and check the shape of every tensor against them.

    Args:
        state: encoder in mmseg's layout, without prefix.
        origin: target key -> source keys, for messages.
        num_heads: number of attention heads, or None if the source file does not hold it.
        options: arguments of ``SegmenterViT`` that tensors do not tell.

    Raises:
        UserError: names a tensor whose shape contradicts the rest.
    """

    def fail(key: str, expected: str) -> NoReturn:
        source = ' + '.join((origin or {}).get(key, (key,)))
        raise UserError(f'{source}: shape {tuple(state[key].shape)} contradicts the rest, expected {expected}')

    D = state['cls_token'].shape[-1]
    depth = 1 + max(int(key.split('.')[1]) for key in state if key.startswith('layers.'))
    swiglu = 'layers.0.ffn.w12.weight' in state
    M = len(state['layers.0.ffn.w12.weight']) // 2 if swiglu else len(state['layers.0.ffn.layers.0.0.weight'])
    weight = state['patch_embed.projection.weight']
    if weight.ndim != 4 or weight.shape[0] != D or weight.shape[2] != weight.shape[3]:
        fail('patch_embed.projection.weight', f'({D}, channels, patch, patch)')
    for key, shape in _shapes(D, M, depth).items():
        if key in state and tuple(state[key].shape) != shape:
            fail(key, str(shape))
    prefix, num_patches, cls_pos_embed = 2 if 'dist_token' in state else 1, 0, True
    if 'pos_embed' in state:
        pos_embed = state['pos_embed']
        if pos_embed.ndim != 3 or pos_embed.shape[0] != 1 or pos_embed.shape[2] != D or pos_embed.shape[1] <= prefix:
            fail('pos_embed', f'(1, {prefix} + patches, {D})')
        rows = pos_embed.shape[1]
        # As in DeiT-III, FlexiViT and timm's DINOv2 with registers.
        cls_pos_embed = not square_grid(rows) or square_grid(rows - prefix) is not None
        num_patches = rows - prefix if cls_pos_embed else rows
    registers = state.get('register_tokens')
    if registers is not None and (registers.ndim != 3 or registers.shape[0] != 1 or registers.shape[2] != D):
        fail('register_tokens', f'(1, registers, {D})')
    return Architecture(
        embed_dims=D,
        num_layers=depth,
        feedforward_channels=M,
        patch_size=weight.shape[-1],
        in_channels=weight.shape[1],
        num_patches=num_patches,
        with_dist_token=prefix == 2,
        num_parameters=sum(t.numel() for t in state.values()),
        num_heads=num_heads,
        ffn='swiglu' if swiglu else 'mlp',
        layer_scale='layers.0.ls1.weight' in state,
        num_registers=0 if registers is None else registers.shape[1],
        cls_pos_embed=cls_pos_embed,
        options=options or {},
    )


def _shapes(width: int, hidden: int, depth: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of an encoder but the patch and position embeddings, by key."""
    D, M = width, hidden
    shapes: dict[str, tuple[int, ...]] = {
        'cls_token': (1, 1, D),
        'dist_token': (1, 1, D),
        'patch_embed.projection.bias': (D,),
        'ln1.weight': (D,),
        'ln1.bias': (D,),
    }
    block = {
        'attn.attn.in_proj_weight': (3 * D, D),
        'attn.attn.in_proj_bias': (3 * D,),
        'attn.attn.out_proj.weight': (D, D),
        'attn.attn.out_proj.bias': (D,),
        'ffn.layers.0.0.weight': (M, D),
        'ffn.layers.0.0.bias': (M,),
        'ffn.layers.1.weight': (D, M),
        'ffn.layers.1.bias': (D,),
        'ffn.w12.weight': (2 * M, D),
        'ffn.w12.bias': (2 * M,),
        'ffn.w3.weight': (D, M),
        'ffn.w3.bias': (D,),
        'ls1.weight': (D,),
        'ls2.weight': (D,),
        **{f'{norm}.{kind}': (D,) for norm in ('ln1', 'ln2') for kind in ('weight', 'bias')},
    }
    return shapes | {f'layers.{i}.{name}': shape for i in range(depth) for name, shape in block.items()}


def standard_heads(width: int) -> int:
    """Return the number of heads of 64 channels, or the next smaller number that divides the width."""
    return next(heads for heads in range(max(width // 64, 1), 0, -1) if width % heads == 0)


def value_warnings(source: str, state: Mapping[str, Tensor]) -> list[str]:
    """Return warnings about the values of tensors: the keys of those that hold NaN or infinity."""
    bad = [key for key, t in state.items() if t.is_floating_point() and t.numel() and not _all_finite(t)]
    return [f'{source}: NaN or infinite values in {listed(bad)}'] if bad else []


def _all_finite(tensor: Tensor) -> bool:
    # aminmax returns NaN or infinity if there is any; torch.isfinite would allocate a mask as large as the tensor
    return all(math.isfinite(extreme) for extreme in torch.aminmax(tensor))
