"""Annealing of EoMT's masked attention."""

from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from ..errors import UserError
from ..models.decode_heads import EoMTHead
from .precision import segmentor_of


@HOOKS.register_module()
class MaskAnnealingHook(Hook):
    """Let the queries of an EoMT attend to all patches more and more often in the course of a training.

    In each block with queries, the probability that a query attends to the patches of its mask only is 1 until
    ``start``, then ``(1 - t) ** power`` with ``t`` from 0 to 1, and 0 from ``end`` on. It depends on the iteration
    alone, so a resumed training continues with the same. Sources: EoMT (arXiv 2503.19108) section 3.3; tue-mps/eomt,
    ``training/lightning_module.py``.

    Args:
        start: iteration for each block with queries, the first block first.
        end: iteration for each block with queries, after ``start``.
        power: exponent of the decrease.

    Raises:
        UserError: the iterations do not fit together or to the number of blocks, or the model is no EoMT.
    """

    def __init__(self, start: Sequence[int], end: Sequence[int], power: float = 0.9) -> None:
        if len(start) != len(end) or any(first < 0 or first >= last for first, last in zip(start, end, strict=False)):
            raise UserError(
                f'MaskAnnealingHook: start={list(start)}, end={list(end)}; expected as many ends as starts, each after '
                'its start'
            )
        self.start, self.end, self.power = start, end, power

    def before_train(self, runner: Runner) -> None:
        """Find the head."""
        head = segmentor_of(runner.model).decode_head
        if not isinstance(head, EoMTHead):
            raise UserError(f'MaskAnnealingHook: decode_head.type={type(head).__name__}, expected EoMTHead')
        if head.num_blocks != len(self.start):
            raise UserError(
                f'MaskAnnealingHook: start and end have {len(self.start)} iterations; expected {head.num_blocks}, one '
                'for each block with queries (decode_head.num_blocks)'
            )
        self.head = head

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Set the probabilities of an iteration.

        Args:
            runner: tells the iteration.
            batch_idx: not used.
            data_batch: not used.
        """
        values = self.probabilities(runner.iter)
        self.head.mask_probabilities.copy_(self.head.mask_probabilities.new_tensor(values))

    def probabilities(self, iteration: int) -> list[float]:
        """Return the probability of each block."""
        return [
            (1 - min(max((iteration - first) / (last - first), 0), 1)) ** self.power
            for first, last in zip(self.start, self.end, strict=True)
        ]
