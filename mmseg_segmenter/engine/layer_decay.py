"""Layer-wise learning rate decay for ViT backbones."""

from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ..errors import UserError

# Parts of the backbone before the first block: of SegmenterViT and VisionTransformer, and of timm's ViTs.
_EMBEDDINGS = {'cls_token', 'dist_token', 'register_tokens', 'pos_embed', 'patch_embed', 'ln_pre'}
_EMBEDDINGS |= {'reg_token', 'mask_token', 'norm_pre', 'rel_pos_bias', 'rope'}


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ViTLayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Lower the learning rate of the backbone's layers, more so the closer they are to the image.

    With L blocks the rate is ``lr * decay_rate ** (L + 1 - i)``. i is 0 for the tokens and the position and patch
    embeddings, 1 to L for the blocks, and L + 1 for what follows (final norm, heads). mmseg's
    ``LearningRateDecayOptimizerConstructor`` does this for BEiT, MAE and ConvNeXt only. Source: BEiT (ICLR 2022),
    appendix.

    With ``blocks_only``, the last block has the whole rate, and the embeddings that of the first block. Source:
    tue-mps/eomt, ``training/lightning_module.py``.

    Each parameter group says whether it is of the backbone (``in_backbone``), for schedules such as
    :class:`~mmseg_segmenter.engine.two_stage_warmup.TwoStageWarmupPolyLR`.

    Args:
        optim_wrapper_cfg: as mmengine's ``DefaultOptimWrapperConstructor``; ``optimizer`` must have ``lr``.
        paramwise_cfg: ``decay_rate`` above 0 and at most 1, ``blocks_only`` (default False), and any option of
            ``DefaultOptimWrapperConstructor``, whose factors for learning rates apply on top.

    Raises:
        UserError: ``decay_rate`` is missing or out of range, ``optimizer.lr`` is missing, or the backbone has no
            ``layers``.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        rate = self.paramwise_cfg.get('decay_rate')
        if not isinstance(rate, float | int) or not 0 < rate <= 1:
            raise UserError(
                f'paramwise_cfg.decay_rate={rate!r} (keys: {", ".join(self.paramwise_cfg) or "none"}); expected a '
                'number above 0 and at most 1'
            )
        if self.base_lr is None:
            raise UserError('layer-wise decay needs optimizer.lr, found none')
        self.decay_rate = rate
        self.blocks_only = bool(self.paramwise_cfg.get('blocks_only', False))

    def add_params(
        self, params: list[dict[str, Any]], module: nn.Module, prefix: str = '', is_dcn_module: bool | None = None
    ) -> None:
        """Add the parameters of a module, and scale the learning rates once all are there."""
        super().add_params(params, module, prefix, is_dcn_module)
        if prefix:  # This is called for every submodule, and for the model itself last.
            return
        backbone = getattr(module, 'backbone', None)
        layers = getattr(backbone, 'layers', None)
        if not isinstance(layers, nn.ModuleList | nn.Sequential):
            raise UserError(f'layer-wise decay needs a ViT backbone with layers, found {_name_of_backbone(module)}')
        base_lr: float = self.base_lr
        names = {id(param): name for name, param in module.named_parameters()}
        last = len(layers) + 1
        blocks = {id(param): i + 1 for i, block in enumerate(layers) for param in block.parameters()}
        for group in params:
            (param,) = group['params']
            name = names[id(param)]
            group['in_backbone'] = name.startswith('backbone.')
            layer_id = 0 if group['in_backbone'] and not _EMBEDDINGS.isdisjoint(name.split('.')) else last
            scale = self.decay_rate ** self._exponent(blocks.get(id(param), layer_id), last)
            group['lr'] = group.get('lr', base_lr) * scale
        lowest = base_lr * self.decay_rate ** self._exponent(0, last)
        print_log(f'layer-wise decay: lr from {lowest:.3g} at the embeddings to {base_lr:.3g} at the head', 'current')

    def _exponent(self, layer_id: int, last: int) -> int:
        """Return how often the rate of a layer is decayed."""
        if self.blocks_only:
            return last - 1 - min(max(layer_id, 1), last - 1)
        return last - layer_id


def _name_of_backbone(model: nn.Module) -> str:
    return type(getattr(model, 'backbone', model)).__name__
