"""Vision Transformer encoder of Segmenter, SETR, DPT, ViT-UPerNet, DINOv2 and DINOv3.

Shapes: B images, N tokens (P prefix tokens, then h * w patches), C width.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

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
from ..layers import (
    QueryFeatures,
    Rope,
    RotaryEmbedding,
    init_transformer_weights,
    resize_patch_embed,
    resize_pos_embed,
    square_grid,
    transformer_blocks,
)
from ..load_report import log_loading
from ._parts import eval_frozen, freeze_except, is_frozen, layer_indices

# state_dict() stores the grid of pos_embed in its metadata under this key, so that an 18x32 embedding is not taken for
# a 24x24 one (both have 576 rows).
_GRID_KEY = 'pos_embed_grid'


class PrefixToken(NamedTuple):
    """Learned tokens in front of the patches.

    Attributes:
        name: name of the parameter (1, num_tokens, C).
        num_tokens: number of tokens.
        has_position: whether ``pos_embed`` has rows for them.
    """

    name: str
    num_tokens: int = 1
    has_position: bool = True


class EmbeddedImages(NamedTuple):
    """Tokens in front of the first block.

    Attributes:
        tokens: (B, N, C).
        grid: (h, w) of the patches, which are the last tokens.
        rope: rotary position embedding of the patches, or None.
    """

    tokens: Tensor
    grid: tuple[int, int]
    rope: Rope | None


# Returns the attention mask (True: attends) of one of the blocks that queries take part in, given the number of the
# block among them, the features in front of it, and the number of all tokens.
QueryMask = Callable[[int, QueryFeatures, int], Tensor | None]

# Called with the path and the tensors of a pretrained checkpoint: converts those of another project to mmseg's layout,
# and returns None for others. ``checkpoints.schemes`` puts its converter here; models do not import it.
foreign_layouts: list[Callable[[str, Mapping[str, Any]], dict[str, Tensor] | None]] = []


@MODELS.register_module()
class SegmenterViT(BaseModule):
    """Vision Transformer (ViT, DeiT, DINOv2, DINOv3) as the encoder of Segmenter.

    Has the arguments and the state_dict keys of mmseg's
    ``VisionTransformer``. Checkpoints work in both classes (in mmseg's with
    its ``patch_bias=True``). Where mmseg differs from the official code, this
    class follows the official code: the patch embedding has a bias, and
    stochastic depth acts on both residual branches. Attention uses fused
    kernels, position embeddings are compared by grid, and keys of a
    pretrained checkpoint that do not fit are reported.

    The arguments from ``feedforward_channels`` on are not in mmseg's class.
    They make the ViTs of DINOv2, DINOv3 and DeiT-III; their defaults change
    nothing.

    Sources: Segmenter (ICCV 2021) section 3.1, official ``segm/model/vit.py``;
    ``mmseg/models/backbones/vit.py``; DINOv2 (arXiv 2304.07193); Vision
    Transformers Need Registers (arXiv 2309.16588); DINOv3 (arXiv 2508.10104).

    Args:
        img_size: height and width in pixels for which ``pos_embed`` is made;
            multiples of ``patch_size``. Images may have any size.
        patch_size: side of a square patch in pixels.
        patch_pad: padding of the patch embedding. ``'corner'`` pads the
            bottom and the right with zeros to a multiple of the patch size,
            ``'same'`` all sides (DINOv2's ``CenterPadding``).
        in_channels: number of channels of the image. A checkpoint for 3
            channels loads into a model for 1: it then computes for a grey
            image what it did for three equal channels.
        embed_dims: width C of the tokens.
        num_layers: number of blocks.
        num_heads: number of attention heads.
        mlp_ratio: hidden width of the feed-forward network divided by C.
        out_origin: also return the tokens in front of the first block.
        out_indices: block(s) whose output is returned. Negative numbers count
            from the end.
        qkv_bias: add biases to the attention. As in mmseg, False removes the
            bias of the output projection too. timm's ``qkv_bias=False`` does
            not: such a checkpoint fits ``qkv_bias=True``, with a qkv bias of 0.
        drop_rate: dropout on the tokens and after linear layers.
        attn_drop_rate: dropout on attention weights.
        drop_path_rate: stochastic depth of the last block. It increases
            linearly from 0 at the first block.
        with_cls_token: keep the class token in the blocks.
        with_dist_token: add the distillation token of DeiT.
        output_cls_token: return ``[feature map, class token]`` per block.
        norm_cfg: norm layer, default LayerNorm with eps 1e-5.
        act_cfg: activation, default exact (erf) GELU.
        patch_norm: add a norm after the patch embedding.
        patch_bias: add a bias to the patch embedding. A checkpoint without
            one is loaded with bias 0.
        pre_norm: add a norm before the first block (CLIP).
        final_norm: add a norm after the last block.
        interpolate_mode: ``'bicubic'`` (mmseg) or ``'bilinear'`` (official),
            for the position embedding on other grids.
        num_fcs: number of linear layers in the feed-forward network.
        norm_eval: keep batch norm layers in eval mode during training.
        with_cp: recompute activations in the backward pass to save memory.
        frozen_exclude: train only parameters whose name contains one of
            these. ``'all'`` trains all parameters, an empty list none. Blocks
            without trainable parameters stay in eval mode, without dropout
            and stochastic depth.
        pretrained: path or URL of a checkpoint, short for ``init_cfg``.
        init_cfg: ``dict(type='Pretrained', checkpoint=..., prefix=...)``, or
            any initialisation of mmengine. Default: as the official code.
            ``resize_patches='bicubic'`` (timm) or ``'bilinear'`` (FlexiViT)
            in a pretrained one resizes patches of another size.
        feedforward_channels: hidden width of the feed-forward network, in
            place of ``mlp_ratio``.
        ffn: ``'mlp'``, or ``'swiglu'`` for SwiGLU. SwiGLU has no ``num_fcs``
            and ``act_cfg``.
        layer_scale: initial value of a learned factor per channel at the end
            of each residual branch. None: no such factors.
        num_registers: number of learned tokens between the class token and
            the patches. They have no position embedding, and are not
            returned.
        cls_pos_embed: ``pos_embed`` has a row for the class token.
        rope: arguments of :class:`~mmseg_segmenter.models.layers.RotaryEmbedding`,
            such as ``dict(base=100, rescale=2)``. Attention then rotates the
            queries and keys of the patches, and there is no ``pos_embed``.
        interpolate_offset: added to the grid in the scale by which
            ``pos_embed`` is resized; DINOv2 without registers uses 0.1.
        interpolate_antialias: filter when ``pos_embed`` becomes smaller;
            DINOv2 with registers does.
        norm_outputs: apply the final norm to the output of every block in
            ``out_indices``, not only to the last one. Needs ``final_norm``.

    Raises:
        UserError: sizes or options contradict each other, or a pretrained
            checkpoint does not fit.
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
        feedforward_channels: int | None = None,
        ffn: str = 'mlp',
        layer_scale: float | None = None,
        num_registers: int = 0,
        cls_pos_embed: bool = True,
        rope: dict[str, Any] | None = None,
        interpolate_offset: float = 0.0,
        interpolate_antialias: bool = False,
        norm_outputs: bool = False,
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
        if norm_outputs and not final_norm:
            raise UserError('norm_outputs=True needs final_norm=True, found False')
        if interpolate_mode not in ('bicubic', 'bilinear'):
            raise UserError(f"interpolate_mode={interpolate_mode!r}; expected 'bicubic' or 'bilinear'")
        if not 0 <= drop_path_rate < 1:
            raise UserError(f'drop_path_rate={drop_path_rate}; expected at least 0 and below 1')
        norm_cfg = norm_cfg or dict(type='LN')

        self.img_size = _pair(img_size)
        self.patch_size = patch_size
        if any(side % patch_size or side <= 0 for side in self.img_size):
            raise UserError(
                f'img_size={tuple(self.img_size)} is not a multiple of patch_size={patch_size}; round it: it only '
                'sets the grid of pos_embed, and images may have any size'
            )
        self.grid = (self.img_size[0] // patch_size, self.img_size[1] // patch_size)
        self.embed_dims, self.num_layers = embed_dims, num_layers
        self.out_indices = layer_indices(out_indices, num_layers)
        self.interpolate_mode = interpolate_mode
        self.interpolate_offset, self.interpolate_antialias = interpolate_offset, interpolate_antialias
        self.with_cls_token = with_cls_token
        self.with_dist_token = with_dist_token
        self.output_cls_token = output_cls_token
        self.out_origin = out_origin
        self.norm_eval = norm_eval
        self.norm_outputs = norm_outputs
        self.prefix_tokens = _prefix_tokens(cls_pos_embed, with_dist_token, num_registers)
        # Without with_cls_token the class token has a row of pos_embed, but leaves before the first block (as mmseg).
        self.num_prefix_tokens = sum(token.num_tokens for token in self.prefix_tokens) - (not with_cls_token)
        self.num_pos_prefix_tokens = sum(token.num_tokens for token in self.prefix_tokens if token.has_position)

        self.patch_embed = PatchEmbed(
            in_channels=in_channels,
            embed_dims=embed_dims,
            kernel_size=patch_size,
            stride=patch_size,
            padding=patch_pad if patch_pad is not None else 0,
            bias=patch_bias,
            norm_cfg=norm_cfg if patch_norm else None,
        )
        for token in self.prefix_tokens:
            self.register_parameter(token.name, nn.Parameter(torch.zeros(1, token.num_tokens, embed_dims)))
        self.pos_embed: nn.Parameter | None = None
        self.rope_embed: RotaryEmbedding | None = None
        if rope is None:
            num_rows = self.num_pos_prefix_tokens + self.grid[0] * self.grid[1]
            self.pos_embed = nn.Parameter(torch.zeros(1, num_rows, embed_dims))
        else:
            self.rope_embed = RotaryEmbedding(embed_dims // num_heads, **rope)
        self.drop_after_pos = nn.Dropout(drop_rate)
        self.ln_pre = build_norm_layer(norm_cfg, embed_dims)[1] if pre_norm else nn.Identity()
        self.layers = transformer_blocks(
            num_layers,
            drop_path_rate,
            embed_dims=embed_dims,
            num_heads=num_heads,
            feedforward_channels=feedforward_channels or int(mlp_ratio * embed_dims),
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            num_fcs=num_fcs,
            qkv_bias=qkv_bias,
            act_cfg=act_cfg,
            norm_cfg=norm_cfg,
            with_cp=with_cp,
            ffn=ffn,
            layer_scale=layer_scale,
        )
        self.ln1 = build_norm_layer(norm_cfg, embed_dims)[1] if final_norm else nn.Identity()

        freeze_except(self, frozen_exclude)
        self.register_load_state_dict_pre_hook(_fit_checkpoint)
        self.register_state_dict_post_hook(_note_grid)

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...] | tuple[list[Tensor], ...]:
        """Encode a batch of images.

        Args:
            inputs: (B, in_channels, H, W), any H and W.

        Returns:
            A feature map (B, C, h, w), h = ceil(H / patch_size), of each block
            in ``out_indices``, in the order of the blocks. With ``out_origin``
            a map of the embedded patches comes first. With
            ``output_cls_token``, pairs ``[map, (B, C) class token]``.
        """
        if torch.is_grad_enabled() and not inputs.requires_grad and is_frozen(self):
            # Nothing here needs a gradient; without them linear layers take the faster path of inference.
            with torch.no_grad():
                return self._encode(inputs)
        return self._encode(inputs)

    def _encode(self, inputs: Tensor) -> tuple[Tensor, ...] | tuple[list[Tensor], ...]:
        x, grid, rope = self._embed(inputs)
        outs = [self._output(x, grid)] if self.out_origin else []
        for i in range(self.num_layers):
            x = self._run_block(i, x, grid, rope)
            if i in self.out_indices:
                normed = self.norm_outputs and i < self.num_layers - 1  # the last block's output has its norm
                outs.append(self._output(self.ln1(x) if normed else x, grid))
        return tuple(outs)

    def encode_with_queries(
        self, inputs: Tensor, queries_QC: Tensor, num_blocks: int, attn_mask: QueryMask | None = None
    ) -> QueryFeatures:
        """Encode a batch of images and queries, which join the tokens in the last blocks (EoMT, arXiv 2503.19108).

        Args:
            inputs: (B, in_channels, H, W), any H and W.
            queries_QC: (Q, C) learned queries; in front of all tokens in the
                last ``num_blocks`` blocks.
            num_blocks: number of blocks with queries, at most ``num_layers``.
            attn_mask: called in front of each of these blocks. Default: no
                mask.

        Returns:
            What the last block returns, after the final norm.
        """
        x, grid, rope = self._embed(inputs)
        first, num_queries = self.num_layers - num_blocks, len(queries_QC)
        for i in range(self.num_layers):
            mask = None
            if i == first:
                x = torch.cat((queries_QC.expand(x.shape[0], -1, -1), x), dim=1)
            if i >= first and attn_mask is not None:
                mask = attn_mask(i - first, self._query_features(self.ln1(x), num_queries, grid), x.shape[1])
            x = self._run_block(i, x, grid, rope, mask)
        return self._query_features(x, num_queries, grid)

    def _query_features(self, x_BNC: Tensor, num_queries: int, grid: tuple[int, int]) -> QueryFeatures:
        patches = x_BNC[:, num_queries + self.num_prefix_tokens :]  # (B, h * w, C)
        return QueryFeatures(x_BNC[:, :num_queries], patches.unflatten(1, grid).permute(0, 3, 1, 2))

    def _embed(self, inputs: Tensor) -> EmbeddedImages:
        patches, grid = self.patch_embed(inputs)
        x = self._add_tokens(patches, grid)
        return EmbeddedImages(x, grid, self.rope_embed(grid) if self.rope_embed is not None else None)

    def _add_tokens(self, patches_BNC: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return prefix tokens and patches, (B, P + h * w, C), with position embedding."""
        batch_size = patches_BNC.shape[0]  # len() would be a constant for torch.export
        x = torch.cat((*self._expanded_tokens(batch_size, has_position=True), patches_BNC), dim=1)
        if self.pos_embed is not None:
            x = x + self.resized_pos_embed(self.pos_embed, self.grid, grid)
        x = self.drop_after_pos(x)
        without_position = self._expanded_tokens(batch_size, has_position=False)
        if without_position:
            P = self.num_pos_prefix_tokens
            x = torch.cat((x[:, :P], *without_position, x[:, P:]), dim=1)
        if not self.with_cls_token:
            x = x[:, 1:]
        return self.ln_pre(x)

    def _expanded_tokens(self, batch_size: int, has_position: bool) -> list[Tensor]:
        """Return the prefix tokens that have, or do not have, rows of ``pos_embed``, each (B, num_tokens, C)."""
        tokens = [token.name for token in self.prefix_tokens if token.has_position is has_position]
        return [getattr(self, name).expand(batch_size, -1, -1) for name in tokens]

    def resized_pos_embed(self, pos_embed: Tensor, src_hw: tuple[int, int], dst_hw: tuple[int, int]) -> Tensor:
        """Resize a position embedding with the options of this model, as :func:`resize_pos_embed`."""
        return resize_pos_embed(
            pos_embed,
            src_hw,
            dst_hw,
            self.interpolate_mode,
            self.num_pos_prefix_tokens,
            self.interpolate_offset,
            self.interpolate_antialias,
        )

    def _run_block(
        self, i: int, x_BNC: Tensor, grid: tuple[int, int], rope: Rope | None, attn_mask: Tensor | None = None
    ) -> Tensor:
        """Run block ``i``; after the last one, the final norm.

        Args:
            i: number of the block.
            x_BNC: (B, N, C) tokens.
            grid: (h, w) of the patches.
            rope: rotary position embedding of the patches.
            attn_mask: as :meth:`PackedSelfAttention.forward`.
        """
        x_BNC = self.layers[i](x_BNC, rope, attn_mask)
        return self.ln1(x_BNC) if i == self.num_layers - 1 else x_BNC

    def _output(self, x_BNC: Tensor, grid: tuple[int, int]) -> Any:
        """Return the feature map (B, C, h, w), with the class token if it is asked for."""
        patches = x_BNC[:, self.num_prefix_tokens :]  # (B, h * w, C)
        # Contiguous, as mmseg's output is: convolutional heads (SETR, UPerNet) expect it.
        feature_map = patches.transpose(1, 2).reshape(x_BNC.shape[0], -1, *grid).contiguous()
        return [feature_map, x_BNC[:, 0]] if self.output_cls_token else feature_map

    def train(self, mode: bool = True) -> 'SegmenterViT':
        super().train(mode)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        if mode:
            eval_frozen((self, *self.layers))
        return self

    def init_weights(self) -> None:
        """Initialise as the official code does, then apply ``init_cfg``.

        Raises:
            MissingFileError: the pretrained checkpoint does not exist.
            UserError: the checkpoint holds another model.
        """
        parameters = [getattr(self, token.name) for token in self.prefix_tokens]
        if self.pos_embed is not None:
            parameters.insert(1, self.pos_embed)
        for parameter in parameters:
            nn.init.trunc_normal_(parameter, std=0.02)
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
        for convert in foreign_layouts:
            source = convert(path, source) or source
        # `Pretrained_Part` is how mmseg's SAN configs take the image encoder out of a CLIP checkpoint.
        prefix = init_cfg.get('prefix') or ('image_encoder.' if init_cfg['type'] == 'Pretrained_Part' else '')
        prefix = prefix if not prefix or prefix.endswith('.') else prefix + '.'
        state = OrderedDict((k[len(prefix) :], v) for k, v in source.items() if k.startswith(prefix))
        if not self.state_dict().keys() & state.keys():
            raise UserError(_foreign_checkpoint_message(path, prefix, list(source)))
        self._resize_patches(path, state, init_cfg.get('resize_patches'))
        pos_embed = state.get('pos_embed')
        if isinstance(pos_embed, Tensor) and pos_embed.ndim == 3:
            grid = getattr(source, '_metadata', {}).get(prefix[:-1], {}).get(_GRID_KEY)
            # Files that do not say are of pretraining, on square images; a grid of another shape can have as many
            # patches.
            grid = grid or square_grid(pos_embed.shape[1] - self.num_pos_prefix_tokens)
            state._metadata = {'': {_GRID_KEY: grid}} if grid else {}  # type: ignore[attr-defined]
        try:
            missing, unexpected = self.load_state_dict(state, strict=False)
        except RuntimeError as error:  # torch's word for tensors of another shape
            weight = state.get('patch_embed.projection.weight')
            if weight is not None and weight.shape[-1] != self.patch_size:
                raise UserError(
                    f'{path} does not fit this SegmenterViT: it has patches of {weight.shape[-1]} pixels, patch_size='
                    f"{self.patch_size}; set the same, or resize_patches='bicubic' in init_cfg"
                ) from None
            raise UserError(f'{path} does not fit this SegmenterViT: {error}') from None
        log_loading(path, len(state), missing, unexpected)

    def _resize_patches(self, path: str, state: dict[str, Any], mode: str | None) -> None:
        """Resize the kernels of the patch embedding of a checkpoint, if ``mode`` says how."""
        key = 'patch_embed.projection.weight'
        weight = state.get(key)
        if mode is None or not isinstance(weight, Tensor) or weight.ndim != 4:
            return
        state[key] = resize_patch_embed(weight, self.patch_size, mode)
        if weight.shape[-1] != self.patch_size:
            print_log(f'{path}: resizing patches of {weight.shape[-1]} to {self.patch_size} pixels', 'current')


def _fit_checkpoint(
    module: SegmenterViT, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *_: Any
) -> None:
    """Adapt a checkpoint to the model where the result is the same function.

    A load hook, so that ``load_from``, ``resume``, ``init_model`` and
    ``load_state_dict`` all use it.
    """
    _add_missing_biases(module, state_dict, prefix)
    _sum_input_channels(module, state_dict, prefix)
    _fold_class_row(module, state_dict, prefix, local_metadata)
    _fit_pos_embed(module, state_dict, prefix, local_metadata)


def _add_missing_biases(module: SegmenterViT, state_dict: dict[str, Any], prefix: str) -> None:
    """Set biases to 0 that a checkpoint was trained without: of the patch embedding, and of all blocks' attention."""
    parameters, blocks = dict(module.named_parameters()), range(module.num_layers)
    for names, weight, bias in (
        ([f'{prefix}patch_embed.projection.'], 'weight', 'bias'),
        ([f'{prefix}layers.{i}.attn.attn.' for i in blocks], 'in_proj_weight', 'in_proj_bias'),
        ([f'{prefix}layers.{i}.attn.attn.out_proj.' for i in blocks], 'weight', 'bias'),
    ):
        own = parameters.get(names[0].removeprefix(prefix) + bias)
        if own is None or any(name + bias in state_dict or name + weight not in state_dict for name in names):
            continue
        for name in names:
            state_dict[name + bias] = torch.zeros_like(own, device=state_dict[name + weight].device)
        shown = names[0] + bias + (f' (nor those of the other {len(names) - 1} blocks)' if len(names) > 1 else '')
        print_log(f'the checkpoint has no {shown}: using 0', 'current', logging.WARNING)


def _sum_input_channels(module: SegmenterViT, state_dict: dict[str, Any], prefix: str) -> None:
    """Make a patch embedding of three channels one of a single channel, for three equal channels."""
    key = f'{prefix}patch_embed.projection.weight'
    if module.patch_embed.projection.in_channels == 1 and key in state_dict and state_dict[key].shape[1:2] == (3,):
        state_dict[key] = state_dict[key].sum(dim=1, keepdim=True)
        print_log(f'{key} has 3 input channels, the model 1: using their sum', 'current')


def _fold_class_row(
    module: SegmenterViT, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    """Add the row of the class token to the token itself, if the model has no such row."""
    key, token = f'{prefix}pos_embed', f'{prefix}cls_token'
    if module.num_pos_prefix_tokens or module.pos_embed is None or not {key, token} <= state_dict.keys():
        return
    rows = state_dict[key].shape[1] if state_dict[key].ndim == 3 else 0
    h, w = local_metadata.get(_GRID_KEY) or square_grid(rows - 1) or (0, 0)
    is_ambiguous = rows == module.grid[0] * module.grid[1]  # 5x10 patches, or 7x7 and a class token
    if rows < 2 or rows - 1 != h * w or is_ambiguous or module.with_dist_token:
        return
    state_dict[token] = state_dict[token] + state_dict[key][:, :1]
    state_dict[key] = state_dict[key][:, 1:]
    print_log(f'the model has no row of {key} for the class token: adding it to {token}', 'current')


def _fit_pos_embed(
    module: SegmenterViT, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    """Resize the position embedding of a checkpoint to the model's grid.

    Raises:
        UserError: the grid of the checkpoint is unknown, or it has other
            prefix tokens than the model.
    """
    key = f'{prefix}pos_embed'
    if module.pos_embed is None or key not in state_dict or state_dict[key].ndim != 3:
        return  # torch reports keys that are missing or of another shape
    if (f'{prefix}dist_token' in state_dict) != module.with_dist_token:
        found, set_to = ('no', False) if module.with_dist_token else ('a', True)
        raise UserError(f'the checkpoint has {found} {prefix}dist_token; set with_dist_token={set_to} in the backbone')
    num_rows, num_prefix, (h, w) = state_dict[key].shape[1], module.num_pos_prefix_tokens, module.grid
    num_patches = num_rows - num_prefix
    has_row = module.prefix_tokens[0].has_position
    other = num_patches + (1 if has_row else -1)  # patches, if the checkpoint has the other cls_pos_embed
    src_hw = local_metadata.get(_GRID_KEY)
    if src_hw is None and (square_grid(num_patches) or not square_grid(other)):
        src_hw = module.grid if num_patches == h * w else square_grid(num_patches)
    if src_hw is None or num_patches != src_hw[0] * src_hw[1]:
        if square_grid(other) or (src_hw and other == src_hw[0] * src_hw[1]):
            raise UserError(
                f'{key} has {num_rows} rows: {other} for the patches, and {"none" if has_row else "one"} for the class '
                f'token. Set cls_pos_embed={not has_row} in the backbone'
            )
        raise UserError(
            f'{key} has {num_patches} patch rows; expected those of the {h}x{w} grid of '
            f'img_size={tuple(module.img_size)} or of a square grid. Set img_size to the size it was trained with'
        )
    src_hw = (int(src_hw[0]), int(src_hw[1]))
    if src_hw != module.grid:
        print_log(f'resizing {key} from {src_hw[0]}x{src_hw[1]} to {h}x{w}', 'current')
        state_dict[key] = module.resized_pos_embed(state_dict[key], src_hw, module.grid)


def _note_grid(module: SegmenterViT, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    if module.pos_embed is not None:
        local_metadata[_GRID_KEY] = tuple(module.grid)


def _foreign_checkpoint_message(path: str, prefix: str, keys: list[str]) -> str:
    message = (
        f'{path}: no key under prefix {prefix!r} is one of SegmenterViT; the checkpoint has {", ".join(keys[:3])}, ...'
    )
    found = next((key.removesuffix('cls_token') for key in keys if key.endswith('.cls_token')), None)
    if found and any(key.startswith(f'{found}layers.') for key in keys):
        return f'{message} Add prefix={found!r} to init_cfg'
    return f'{message} Convert it to the mmseg layout first'


def _prefix_tokens(cls_pos_embed: bool, with_dist_token: bool, num_registers: int) -> list[PrefixToken]:
    """List the tokens in front of the patches: the class token first, and those with a position before the others."""
    tokens = [PrefixToken('cls_token', has_position=cls_pos_embed)]
    if with_dist_token:
        tokens.append(PrefixToken('dist_token', has_position=cls_pos_embed))
    if num_registers:
        tokens.append(PrefixToken('register_tokens', num_registers, has_position=False))
    return tokens


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if len(size) not in (1, 2):
        raise UserError(f'img_size={tuple(size)}; expected one or two numbers')
    return size[0], size[-1]
