"""Learning rate schedule of DINOv3's linear segmentation."""

import math
from typing import Any

from mmengine.optim.scheduler import _ParamScheduler
from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin
from mmengine.registry import PARAM_SCHEDULERS

from ..errors import UserError


@PARAM_SCHEDULERS.register_module()
class WarmupOneCycleLR(LRSchedulerMixin, _ParamScheduler):
    """The falling half of ``OneCycleLR``, with a linear warm-up in place of its first steps.

    With the optimizer's rate ``lr``, T steps of which W warm up, and the ratio r, step s has

    - ``lr * (r + (1 - r) * s / W) * (1 - s / T)`` if s < W,
    - ``lr * (1 + cos(pi * (s + 1) / T)) / 2`` else.

    Iteration i has step max(i - 1, 0). Chaining mmengine's schedulers cannot express this: the rate rises at step W
    from (1 - W / T) to nearly 1, and the first step is taken twice. Both are so in the published training. Source: the
    scheduler of that name in DINOv3's ``config-ade20k-linear-training.yaml``.

    Args:
        optimizer: optimizer or its wrapper. Parameter groups may have different learning rates.
        total_steps: number T of steps.
        warmup_iters: number W of steps.
        warmup_ratio: first learning rate divided by that of the optimizer.
        kwargs: ``by_epoch``, ``begin``, ... as for all schedulers.

    Raises:
        UserError: ``warmup_iters`` is negative or not below ``total_steps``.
    """

    def __init__(
        self, optimizer: Any, total_steps: int, warmup_iters: int, warmup_ratio: float = 1e-6, **kwargs: Any
    ) -> None:
        if not 0 <= warmup_iters < total_steps:
            raise UserError(
                f'WarmupOneCycleLR: warmup_iters={warmup_iters}; expected 0 or more, and less than '
                f'total_steps={total_steps}'
            )
        self.total_steps, self.warmup_iters, self.warmup_ratio = total_steps, warmup_iters, warmup_ratio
        super().__init__(optimizer, **kwargs)

    def _get_value(self) -> list[float]:
        step = max(self.last_step - 1, 0)
        if step < self.warmup_iters:
            warmup = self.warmup_ratio + (1 - self.warmup_ratio) * step / self.warmup_iters
            factor = warmup * (1 - step / self.total_steps)
        else:
            factor = (1 + math.cos(math.pi * min((step + 1) / self.total_steps, 1))) / 2
        return [value * factor for value in self.base_values]
