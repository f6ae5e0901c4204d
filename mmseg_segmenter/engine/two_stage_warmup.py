"""Learning rate schedule of EoMT."""

from collections.abc import Sequence
from typing import Any

from mmengine.optim.scheduler import _ParamScheduler
from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin
from mmengine.registry import PARAM_SCHEDULERS

from ..errors import UserError


@PARAM_SCHEDULERS.register_module()
class TwoStageWarmupPolyLR(LRSchedulerMixin, _ParamScheduler):
    """Warm up the head, then the backbone; each falls polynomially after its warm-up.

    With the rate ``lr`` of a parameter group, T steps, and warm-ups of H and B steps, step s has

    - in the head, ``lr * s / H`` if s < H, else ``lr * (1 - (s - H) / (T - H)) ** power``,
    - in the backbone, 0 if s < H, ``lr * (s - H) / B`` if s < H + B, else
      ``lr * (1 - (s - H - B) / (T - H - B)) ** power``.

    Iteration i has step i. ``ViTLayerDecayOptimWrapperConstructor`` notes in each group which part it belongs to
    (``in_backbone``). Source: tue-mps/eomt, ``training/two_stage_warmup_poly_schedule.py``.

    Args:
        optimizer: optimizer or its wrapper.
        total_steps: number T of steps.
        warmup_iters: numbers H and B of steps.
        power: exponent of the decrease.
        kwargs: ``by_epoch``, ``begin``, ... as for all schedulers.

    Raises:
        UserError: the warm-ups are negative or not shorter than the whole, or parameter groups do not say to which part
            they belong.
    """

    def __init__(
        self, optimizer: Any, total_steps: int, warmup_iters: Sequence[int], power: float = 0.9, **kwargs: Any
    ) -> None:
        if len(warmup_iters) != 2 or min(warmup_iters) < 0 or sum(warmup_iters) >= total_steps:
            raise UserError(
                f'TwoStageWarmupPolyLR: warmup_iters={tuple(warmup_iters)}; expected two numbers, 0 or more, whose sum '
                f'is less than total_steps={total_steps}'
            )
        if not any('in_backbone' in group for group in optimizer.param_groups):
            raise UserError(
                'TwoStageWarmupPolyLR needs parameter groups of the head and of the backbone; set '
                "optim_wrapper.constructor='ViTLayerDecayOptimWrapperConstructor' and, for equal rates, "
                'optim_wrapper.paramwise_cfg.decay_rate=1.0'
            )
        self.total_steps, self.warmup_iters, self.power = total_steps, tuple(warmup_iters), power
        super().__init__(optimizer, **kwargs)

    def _get_value(self) -> list[float]:
        head, backbone = self.warmup_iters
        of_head, of_backbone = self._factor(0, head), self._factor(head, backbone)
        # mmengine's wrapper adds a group that is in neither, for the rate in the log.
        return [
            value * (of_backbone if group.get('in_backbone') else of_head)
            for value, group in zip(self.base_values, self.optimizer.param_groups, strict=True)
        ]

    def _factor(self, start: int, warmup: int) -> float:
        """Return the rate of the current step divided by the highest one, for a warm-up from ``start`` on."""
        step = self.last_step - start
        if step < warmup:
            return max(step, 0) / warmup
        progress = min((step - warmup) / (self.total_steps - start - warmup), 1)
        return float((1 - progress) ** self.power)
