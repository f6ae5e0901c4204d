"""Any ViT of timm as a backbone."""

import difflib
import inspect
import os
from collections.abc import Sequence
from contextlib import suppress
from pickle import UnpicklingError
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor, nn

from ...errors import MissingFileError, MissingPackageError, UserError
from ._parts import eval_frozen, freeze_except, is_frozen, layer_indices


@MODELS.register_module()
class TimmViT(BaseModule):
    """A plain ViT of timm, such as EVA-02, BEiT or SigLIP 2, as the encoder of Segmenter.

    It is for models that :class:`SegmenterViT` cannot compute. The same heads
    work on both; attention maps and :class:`EoMT` need ``SegmenterViT``. The
    classifier of the model is removed. Images are padded with zeros at the
    bottom and the right to a multiple of the patch size. They may have any
    size, except that BEiT takes images of ``img_size`` only.

    Args:
        model_name: as in ``timm.create_model``.
        img_size: height and width in pixels for which the model is made.
            Default: those of its pretraining.
        out_indices: block(s) whose output is returned. Negative numbers count
            from the end. Blocks behind the last of them are removed.
        norm_outputs: apply the final norm to all outputs, not only to that of
            the last block. Models that pool before the norm (BEiT, EVA-02)
            have no final norm; ``global_pool='token'`` gives them one, with
            new weights.
        output_cls_token: return ``[feature map, class token]`` per block.
        pretrained: load timm's weights for ``model_name``.
        checkpoint_path: file to load instead, in a layout that timm reads.
        with_cp: recompute activations in the backward pass to save memory.
        frozen_exclude: as in :class:`SegmenterViT`.
        **kwargs: as ``timm.create_model``, such as ``drop_path_rate``.

    Raises:
        MissingPackageError: timm cannot be imported.
        MissingFileError: there is no ``checkpoint_path``.
        UserError: timm has no such model, it is not a plain ViT, or options
            contradict each other.
    """

    def __init__(
        self,
        model_name: str,
        img_size: int | Sequence[int] | None = None,
        out_indices: int | Sequence[int] = -1,
        norm_outputs: bool = False,
        output_cls_token: bool = False,
        pretrained: bool = False,
        checkpoint_path: str = '',
        with_cp: bool = False,
        frozen_exclude: Sequence[str] = ('all',),
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if not isinstance(pretrained, bool):
            raise UserError(f'TimmViT: pretrained={pretrained!r}; expected True or False (a file: checkpoint_path)')
        if img_size is not None:
            kwargs['img_size'] = img_size if isinstance(img_size, int) else tuple(img_size)
        if checkpoint_path:
            if not os.path.isfile(checkpoint_path):
                raise MissingFileError(f'{checkpoint_path} not found (working directory: {os.getcwd()})')
            # As timm's own weights are loaded: with another grid of position embeddings, and without the classifier.
            pretrained, kwargs['pretrained_cfg_overlay'] = True, dict(file=checkpoint_path)
        self.vit: Any = _create(model_name, dict(pretrained=pretrained, num_classes=0, **kwargs))
        self.num_layers, self.embed_dims = len(self.vit.blocks), self.vit.embed_dim
        patch_embed = self.vit.patch_embed
        self.patch_size = int(patch_embed.patch_size[0])
        self.num_prefix_tokens = self.vit.num_prefix_tokens
        self.img_size = tuple(patch_embed.img_size) if patch_embed.strict_img_size else None  # None: any
        if output_cls_token and not self.num_prefix_tokens:
            raise UserError(f'output_cls_token=True: {model_name} has no class token')
        self.out_indices = layer_indices(out_indices, self.num_layers)
        self.norm_outputs, self.output_cls_token = norm_outputs, output_cls_token
        self._ends_at_last = self.num_layers - 1 in self.out_indices  # whose output has the final norm
        self.vit.prune_intermediate_layers(
            sorted(self.out_indices), prune_norm=not (self._ends_at_last or norm_outputs), prune_head=True
        )
        if with_cp:
            self.vit.set_grad_checkpointing(True)
        freeze_except(self, frozen_exclude)

    def forward(self, inputs: Tensor) -> tuple[Any, ...]:
        """Encode a batch of images.

        Args:
            inputs: (B, C, H, W).

        Returns:
            A feature map (B, C, h, w), h = ceil(H / patch_size), of each block
            in ``out_indices``, in the order of the blocks. With
            ``output_cls_token``, pairs ``[map, (B, C) class token]``.

        Raises:
            UserError: the model takes images of another size only.
        """
        if torch.is_grad_enabled() and not inputs.requires_grad and is_frozen(self):
            with torch.no_grad():
                return self._encode(inputs)
        return self._encode(inputs)

    def _encode(self, inputs: Tensor) -> tuple[Any, ...]:
        inputs = F.pad(inputs, (0, -inputs.shape[3] % self.patch_size, 0, -inputs.shape[2] % self.patch_size))
        height, width = inputs.shape[2:]
        if self.img_size not in (None, (height, width)):
            raise UserError(
                f'{type(self.vit).__name__} takes images of {self.img_size} pixels only, found {(height, width)}; set '
                f"img_size, and test with mode='slide' and windows of that size"
            )
        grid = height // self.patch_size, width // self.patch_size
        tokens, found = self.vit.forward_intermediates(
            inputs, indices=sorted(self.out_indices), norm=self.norm_outputs, return_prefix_tokens=self.output_cls_token
        )
        outs = [list(each) if self.output_cls_token else each for each in found]
        if self._ends_at_last:  # tokens (B, P + h * w, C) have the final norm
            last = tokens[:, self.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid).contiguous()
            outs[-1] = [last, tokens[:, : self.num_prefix_tokens]] if self.output_cls_token else last
        return tuple([out[0], out[1][:, 0]] if self.output_cls_token else out for out in outs)

    @property
    def layers(self) -> nn.ModuleList | nn.Sequential:
        """Return the blocks."""
        blocks: nn.ModuleList | nn.Sequential = self.vit.blocks
        return blocks

    def train(self, mode: bool = True) -> 'TimmViT':
        super().train(mode)
        if mode:
            eval_frozen((self, *self.layers))
        return self

    def init_weights(self) -> None:
        """Do nothing: timm has initialised or loaded the weights."""


def _import_timm() -> ModuleType:
    try:
        import timm
    except Exception as error:  # a torchvision of another torch raises a RuntimeError
        raise MissingPackageError(
            f"TimmViT needs timm ({type(error).__name__}: {error}): run pip install 'mmseg_segmenter[timm]'"
        ) from None
    return timm


def _create(name: str, options: dict[str, Any]) -> Any:
    """Build a model of timm, for images of any size if it can be."""
    timm = _import_timm()
    known = timm.list_models()
    if name.partition('.')[0] not in known:
        near = difflib.get_close_matches(name.partition('.')[0], known, n=3) or ['none']
        raise UserError(f'timm {timm.__version__} has no model {name!r}; nearest: {", ".join(near)}')
    try:
        with suppress(TypeError):  # unknown to BEiT
            return _plain_vit(timm.create_model(name, dynamic_img_size=True, **options), name)
        return _plain_vit(timm.create_model(name, **options), name)
    except (TypeError, AssertionError, RuntimeError, OSError, UnpicklingError) as error:
        raise UserError(f'timm cannot make {name}: {" ".join(str(error).split())}') from error


def _plain_vit(model: Any, name: str) -> Any:
    """Return the model if it is a stack of blocks on one grid of patches."""
    method = getattr(model, 'forward_intermediates', None)
    parameters = inspect.signature(method).parameters if callable(method) else {}
    if not (
        'return_prefix_tokens' in parameters
        and isinstance(getattr(model, 'blocks', None), nn.ModuleList | nn.Sequential)
        and hasattr(getattr(model, 'patch_embed', None), 'patch_size')
    ):
        raise UserError(
            f'{name} ({type(model).__name__}) is not a plain ViT; expected blocks on one grid of patches. For other '
            "models of timm, set type='TIMMBackbone', the class of mmseg"
        )
    return model
