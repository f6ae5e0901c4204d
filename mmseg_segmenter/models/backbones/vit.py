"""Vision Transformer encoder of Segmenter, SETR, DPT and ViT-UPerNet.

Shapes: B images, N tokens (extra tokens first, then h * w patches), C width.
"""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import build_norm_layer
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.runner.checkpoint import CheckpointLoader
from mmseg.models.utils import PatchEmbed
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import UserError
from ..layers import init_transformer_weights, resize_pos_embed, square_grid, transformer_blocks

# Key under which state_dict() notes the grid of pos_embed in its metadata, so
# that an 18x32 embedding is not taken for a 24x24 one (both have 576 rows).
_GRID_KEY = 'pos_embed_grid'


@MODELS.register_module()
class SegmenterViT(BaseModule):
    """Vision Transformer (ViT, DeiT) as the encoder of Segmenter.

    Takes the arguments, and has the state_dict keys, of mmseg's
    ``VisionTransformer``; checkpoints move both ways (towards mmseg with its
    ``patch_bias=True``). What differs is what mmseg gets wrong: the patch embedding has its bias, stochastic depth acts
    on both residual branches, attention is fused, position embeddings are
    compared by grid, and a pretrained checkpoint that does not fit is
    reported instead of being loaded in part.

    Sources: Segmenter (ICCV 2021) section 3.1, official ``segm/model/vit.py``;
    ``mmseg/models/backbones/vit.py``.

    Args:
        img_size: height and width in pixels for which ``pos_embed`` is made;
            multiples of ``patch_size``. Other sizes are accepted by forward.
        patch_size: side of a square patch in pixels.
        patch_pad: padding of the patch embedding; ``'corner'`` pads bottom
            and right with zeros up to a multiple of the patch.
        in_channels: channels of the input image. A checkpoint for 3 channels
            loads into 1: its patch embedding of a grey image.
        embed_dims: width C.
        num_layers: depth L.
        num_heads: attention heads.
        mlp_ratio: hidden width of the feed-forward network over C.
        out_origin: also output the embedded patches, before the first block.
        out_indices: block(s) whose output is returned; negative ones count
            from the end.
        qkv_bias: biases in the attention.
        drop_rate: dropout on tokens and behind linear layers.
        attn_drop_rate: dropout on attention weights.
        drop_path_rate: stochastic depth of the last block (linear from 0).
        with_cls_token: keep the class token in the blocks.
        with_dist_token: second extra token of distilled DeiT.
        output_cls_token: each output is ``[feature map, class token]``.
        norm_cfg: normalisation layer, default LayerNorm with eps 1e-5.
        act_cfg: activation, default exact (erf) GELU.
        patch_norm: normalisation after the patch embedding.
        patch_bias: bias of the patch embedding. A checkpoint without one
            loads as bias 0.
        pre_norm: normalisation before the first block (CLIP).
        final_norm: normalisation after the last block.
        interpolate_mode: ``'bicubic'`` (mmseg) or ``'bilinear'`` (official),
            for position embeddings at other grids.
        num_fcs: linear layers in the feed-forward network.
        norm_eval: keep batch-norm layers in eval mode while training.
        with_cp: recompute activations in the backward pass.
        frozen_exclude: train only parameters whose name contains one of
            these; ``'all'`` freezes nothing.
        pretrained: path or URL of a checkpoint, short for ``init_cfg``.
        init_cfg: ``dict(type='Pretrained', checkpoint=..., prefix=...)``, or
            any mmengine initialisation. Default: the official one.

    Raises:
        ValueError: sizes or options that contradict each other, or a
            pretrained checkpoint that does not fit.
    """

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        patch_pad: str | int | None = 'corner',
        in_channels: int = 3,
        embed_dims: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4,
        out_origin: bool = False,
        out_indices: int | Sequence[int] = -1,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        with_cls_token: bool = True,
        with_dist_token: bool = False,
        output_cls_token: bool = False,
        norm_cfg: dict[str, Any] | None = None,
        act_cfg: dict[str, Any] | None = None,
        patch_norm: bool = False,
        patch_bias: bool = True,
        pre_norm: bool = False,
        final_norm: bool = False,
        interpolate_mode: str = 'bicubic',
        num_fcs: int = 2,
        norm_eval: bool = False,
        with_cp: bool = False,
        frozen_exclude: Sequence[str] = ('all',),
        pretrained: str | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        if pretrained is not None:
            if init_cfg is not None:
                raise UserError(f'set pretrained or init_cfg, not both; found pretrained={pretrained!r}')
            if not isinstance(pretrained, str):
                raise TypeError(f'pretrained must be a path or URL, found {type(pretrained).__name__}')
            init_cfg = dict(type='Pretrained', checkpoint=pretrained)
        super().__init__(init_cfg=init_cfg)
        if (output_cls_token or with_dist_token) and not with_cls_token:
            raise UserError('output_cls_token and with_dist_token need with_cls_token=True, found False')
        if interpolate_mode not in ('bicubic', 'bilinear'):
            raise UserError(f"interpolate_mode={interpolate_mode!r}; expected 'bicubic' or 'bilinear'")
        if not 0 <= drop_path_rate < 1:
            raise UserError(f'drop_path_rate={drop_path_rate}; expected at least 0 and below 1')
        if isinstance(frozen_exclude, str):
            raise TypeError(f'frozen_exclude={frozen_exclude!r}; expected a list of names')
        norm_cfg = norm_cfg or dict(type='LN')

        self.img_size = _pair(img_size)
        self.patch_size = patch_size
        if any(side % patch_size or side <= 0 for side in self.img_size):
            raise UserError(
                f'img_size={tuple(self.img_size)} is not a multiple of patch_size={patch_size}; it sets the grid '
                'of pos_embed only, so round it (images of any size are accepted)'
            )
        self.grid = (self.img_size[0] // patch_size, self.img_size[1] // patch_size)
        self.num_layers = num_layers
        self.out_indices = _layer_indices(out_indices, num_layers)
        self.interpolate_mode = interpolate_mode
        self.with_cls_token = with_cls_token
        self.with_dist_token = with_dist_token
        self.output_cls_token = output_cls_token
        self.out_origin = out_origin
        self.norm_eval = norm_eval
        self.num_extra_tokens = 2 if with_dist_token else 1

        self.patch_embed = PatchEmbed(
            in_channels=in_channels,
            embed_dims=embed_dims,
            kernel_size=patch_size,
            stride=patch_size,
            padding=patch_pad if patch_pad is not None else 0,
            bias=patch_bias,
            norm_cfg=norm_cfg if patch_norm else None,
        )
        num_tokens = self.num_extra_tokens + self.grid[0] * self.grid[1]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dims))
        if with_dist_token:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, embed_dims))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_tokens, embed_dims))
        self.drop_after_pos = nn.Dropout(drop_rate)
        self.ln_pre = build_norm_layer(norm_cfg, embed_dims)[1] if pre_norm else nn.Identity()
        self.layers = transformer_blocks(
            num_layers,
            drop_path_rate,
            embed_dims,
            mlp_ratio,
            num_heads=num_heads,
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            num_fcs=num_fcs,
            qkv_bias=qkv_bias,
            act_cfg=act_cfg,
            norm_cfg=norm_cfg,
            with_cp=with_cp,
        )
        self.ln1 = build_norm_layer(norm_cfg, embed_dims)[1] if final_norm else nn.Identity()

        if 'all' not in frozen_exclude:
            for name, param in self.named_parameters():
                param.requires_grad_(any(kept in name for kept in frozen_exclude))
        self.register_load_state_dict_pre_hook(_fit_checkpoint)
        self.register_state_dict_post_hook(_note_grid)

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...] | tuple[list[Tensor], ...]:
        """Encode a batch of images.

        Args:
            inputs: (B, in_channels, H, W), any H and W.

        Returns:
            A feature map (B, C, h, w), h = ceil(H / patch_size), of each block
            in ``out_indices``, in the order of the blocks (and one more, first,
            with ``out_origin``); pairs ``[map, (B, C) class token]`` with
            ``output_cls_token``.
        """
        x, grid = self.patch_embed(inputs)
        x = self._add_tokens(x, grid)
        outs = [self._output(x, grid)] if self.out_origin else []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i == self.num_layers - 1:
                x = self.ln1(x)
            if i in self.out_indices:
                outs.append(self._output(x, grid))
        return tuple(outs)

    def _add_tokens(self, patches_BNC: Tensor, grid: tuple[int, int]) -> Tensor:
        """Prepend the extra tokens and add the position embedding."""
        tokens = [self.cls_token, self.dist_token] if self.with_dist_token else [self.cls_token]
        extra = [token.expand(patches_BNC.shape[0], -1, -1) for token in tokens]
        pos_embed = resize_pos_embed(self.pos_embed, self.grid, grid, self.interpolate_mode, self.num_extra_tokens)
        x = self.drop_after_pos(torch.cat((*extra, patches_BNC), dim=1) + pos_embed)
        if not self.with_cls_token:
            x = x[:, 1:]
        return self.ln_pre(x)

    def _output(self, x_BNC: Tensor, grid: tuple[int, int]) -> Any:
        patches = x_BNC[:, self.num_extra_tokens :] if self.with_cls_token else x_BNC
        # Contiguous as from mmseg: convolutional heads (SETR, UPerNet) expect it.
        feature_map = patches.transpose(1, 2).reshape(x_BNC.shape[0], -1, *grid).contiguous()
        return [feature_map, x_BNC[:, 0]] if self.output_cls_token else feature_map

    def train(self, mode: bool = True) -> 'SegmenterViT':
        super().train(mode)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def init_weights(self) -> None:
        """Initialise as the official code, then apply ``init_cfg``.

        Raises:
            FileNotFoundError: the pretrained checkpoint does not exist.
            ValueError: it holds another model.
        """
        for token in (self.cls_token, self.pos_embed, getattr(self, 'dist_token', None)):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)
        self.apply(init_transformer_weights)
        if isinstance(self.init_cfg, dict) and self.init_cfg['type'] in ('Pretrained', 'Pretrained_Part'):
            self._load_pretrained(self.init_cfg)
        elif self.init_cfg is not None:
            super().init_weights()

    def _load_pretrained(self, init_cfg: dict[str, Any]) -> None:
        path = init_cfg['checkpoint']
        if not isinstance(path, str):
            raise UserError(f'init_cfg.checkpoint={path!r}; expected a path or URL')
        source = CheckpointLoader.load_checkpoint(path, map_location='cpu', logger='silent')
        if isinstance(source, Mapping):
            source = source.get('state_dict', source)
        if not isinstance(source, Mapping) or not source:
            raise UserError(f'{path} holds a {type(source).__name__}; expected tensors by name')
        # `Pretrained_Part` is how mmseg's SAN configs take the image encoder out of a CLIP checkpoint.
        prefix = init_cfg.get('prefix') or ('image_encoder.' if init_cfg['type'] == 'Pretrained_Part' else '')
        prefix = prefix if not prefix or prefix.endswith('.') else prefix + '.'
        state = OrderedDict((k[len(prefix) :], v) for k, v in source.items() if k.startswith(prefix))
        own = self.state_dict()
        if not own.keys() & state.keys():
            raise UserError(_foreign_checkpoint_message(path, prefix, list(source)))
        pos_embed = state.get('pos_embed')
        if isinstance(pos_embed, Tensor) and pos_embed.ndim == 3:
            grid = getattr(source, '_metadata', {}).get(prefix[:-1], {}).get(_GRID_KEY)
            # Files that do not say are of pretraining, on square images; a grid of another shape can have as many
            # patches.
            grid = grid or square_grid(pos_embed.shape[1] - (2 if 'dist_token' in state else 1))
            state._metadata = {'': {_GRID_KEY: grid}} if grid else {}  # type: ignore[attr-defined]
        try:
            missing, unexpected = self.load_state_dict(state, strict=False)
        except RuntimeError as error:  # torch's word for tensors of another shape
            raise UserError(f'{path} does not fit this SegmenterViT: {error}') from None
        print_log(f'loaded the backbone from {path}: {len(own) - len(missing)} of {len(own)} tensors', 'current')
        for what, keys in (('not in the checkpoint, initialised randomly', missing), ('not used', unexpected)):
            if keys:
                print_log(f'{path}: {len(keys)} tensors {what}: {", ".join(keys)}', 'current', logging.WARNING)


def _fit_checkpoint(
    module: SegmenterViT, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *_: Any
) -> None:
    """Load hook: position embedding on another grid, absent patch bias, one channel instead of three.

    A hook, so that ``load_from``, ``resume``, ``init_model`` and plain
    ``load_state_dict`` all get it.
    """
    weight, bias = (f'{prefix}patch_embed.projection.{name}' for name in ('weight', 'bias'))
    own_bias = module.patch_embed.projection.bias
    if own_bias is not None and weight in state_dict and bias not in state_dict:
        state_dict[bias] = torch.zeros_like(own_bias, device=state_dict[weight].device)
        print_log(f'the checkpoint has no {bias} (mmseg leaves it out): using 0', 'current', logging.WARNING)

    if module.patch_embed.projection.in_channels == 1 and weight in state_dict:
        source = state_dict[weight]
        if source.shape[1:2] == (3,):
            # what the three channels of a grey image, which are equal, add up to
            state_dict[weight] = source.sum(dim=1, keepdim=True)
            print_log(f'{weight} is of 3 channels, the model of 1: adding them up', 'current')

    key = f'{prefix}pos_embed'
    if key not in state_dict or state_dict[key].ndim != 3:
        return  # torch reports what is missing or of another shape
    if (f'{prefix}dist_token' in state_dict) != module.with_dist_token:
        found, set_to = ('no', False) if module.with_dist_token else ('a', True)
        raise UserError(f'the checkpoint has {found} {prefix}dist_token; set with_dist_token={set_to} in the backbone')
    num_patches = state_dict[key].shape[1] - module.num_extra_tokens
    same_count = num_patches == module.grid[0] * module.grid[1]
    src_hw = local_metadata.get(_GRID_KEY) or (module.grid if same_count else square_grid(num_patches))
    if src_hw is None:
        raise UserError(
            f'{key} has {num_patches} patch rows: neither the {module.grid[0]}x{module.grid[1]} grid of '
            f'img_size={tuple(module.img_size)} nor a square one; set img_size to the size it was trained with'
        )
    src_hw = (int(src_hw[0]), int(src_hw[1]))
    if src_hw != module.grid:
        print_log(f'resizing {key} from {src_hw[0]}x{src_hw[1]} to {module.grid[0]}x{module.grid[1]}', 'current')
        state_dict[key] = resize_pos_embed(
            state_dict[key], src_hw, module.grid, module.interpolate_mode, module.num_extra_tokens
        )


def _note_grid(module: SegmenterViT, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    local_metadata[_GRID_KEY] = tuple(module.grid)


def _foreign_checkpoint_message(path: str, prefix: str, keys: list[str]) -> str:
    message = (
        f'{path}: no key under prefix {prefix!r} is one of SegmenterViT; the checkpoint has {", ".join(keys[:3])}, ...'
    )
    found = next((key.removesuffix('cls_token') for key in keys if key.endswith('.cls_token')), None)
    if found and any(key.startswith(f'{found}layers.') for key in keys):
        return f'{message} Add prefix={found!r} to init_cfg'
    return f'{message} Convert it to the mmseg layout first'


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if len(size) not in (1, 2):
        raise UserError(f'img_size={tuple(size)}; expected one or two numbers')
    return size[0], size[-1]


def _layer_indices(out_indices: int | Sequence[int], num_layers: int) -> list[int]:
    indices = [out_indices] if isinstance(out_indices, int) else list(out_indices)
    wrong = [i for i in indices if not -num_layers <= i < num_layers]
    if wrong:
        raise UserError(f'out_indices={out_indices} with num_layers={num_layers}: no layer {wrong[0]}')
    return [i % num_layers for i in indices]
