"""Averages over all processes: of the log, and of the pixels that a loss counts."""

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import torch
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import HOOKS
from torch import Tensor

from ..errors import UserError
from ..models.losses import CrossEntropyLoss, sum_of_weights
from .precision import segmentor_of


@HOOKS.register_module()
class AverageLogHook(Hook):
    """Log losses and accuracies averaged over all processes; mmengine logs those of the first process."""

    priority = 'HIGHEST'  # before RuntimeInfoHook passes the values on

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Average the outputs of an iteration, in place.

        Args:
            runner: not used.
            batch_idx: not used.
            data_batch: not used.
            outputs: scalars by name, the same names in all processes.
        """
        if outputs and dist.is_distributed():
            values = torch.stack([torch.as_tensor(value).detach().float().mean() for value in outputs.values()])
            dist.all_reduce(values, 'mean')
            outputs.update(zip(outputs, values, strict=True))


@HOOKS.register_module()
class LabelledPixelsHook(Hook):
    """Count the labelled pixels of each update for losses with ``avg_over='all'``.

    An update averages the gradients of all processes and of all accumulated batches. For the mean over the pixels of
    all of them, each loss has to be divided by its share of their number, before the first of the batches is used.
    Therefore the hook fetches the batches of an update together. This delays nothing in the long run, but
    ``accumulative_counts`` batches are in memory at a time.

    The hook does nothing if no loss of the model has ``avg_over='all'``.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        """Find the losses."""
        heads = [module for module in segmentor_of(runner.model).modules() if isinstance(module, BaseDecodeHead)]
        self.losses = [
            (loss, head.ignore_index)
            for head in heads
            for loss in head.loss_decode.modules()
            if isinstance(loss, CrossEntropyLoss) and loss.avg_over == 'all'
        ]
        self.batches: Iterator[Any] | None = None

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """At the first batch of an update, count the pixels of all its batches in all processes.

        Args:
            runner: whose training loop gets the batches that are fetched ahead.
            batch_idx: not used.
            data_batch: with ``data_samples``, one per image, with ``gt_sem_seg`` (1, H, W).

        Raises:
            UserError: gradients are accumulated in a training loop that counts epochs.
        """
        optim = runner.optim_wrapper
        done = optim.inner_count % optim._accumulative_counts
        if not self.losses or (done and self.losses[0][0].avg_factor is not None):
            return
        rest = min(optim._accumulative_counts - done, runner.max_iters - optim.inner_count) - 1
        ahead = self._fetch(runner.train_loop, rest) if rest else []
        counts = torch.tensor(
            [
                [_count(loss, ignore_index, batch) for batch in (data_batch, *ahead)]
                for loss, ignore_index in self.losses
            ],
            dtype=torch.float64,
        ).sum(1)
        dist.all_reduce(counts)
        # The wrapper divides each loss by the number of accumulated batches, and DDP gradients by that of processes.
        share = float(optim.scale_loss(torch.ones((), dtype=torch.float64))) / dist.get_world_size()
        for (loss, _), count in zip(self.losses, counts.tolist(), strict=True):
            loss.avg_factor = count * share

    def _fetch(self, loop: BaseLoop, number: int) -> list[Any]:
        """Return the next batches of a loop, which gets them once more."""
        if not hasattr(loop, 'dataloader_iterator'):
            raise UserError(
                "avg_over='all' with optim_wrapper.accumulative_counts above 1: expected train_cfg.type="
                f"'IterBasedTrainLoop', found {type(loop).__name__}"
            )
        self.batches = self.batches or loop.dataloader_iterator  # not the chain of the last call
        ahead = list(islice(self.batches, number))
        loop.dataloader_iterator = chain(ahead, self.batches)
        return ahead


def _count(loss: CrossEntropyLoss, ignore_index: int, batch: dict[str, Any]) -> float:
    """Return the number of labelled pixels in a batch, or the sum of their class weights."""
    weight = None if loss.class_weight is None else torch.tensor(loss.class_weight, dtype=torch.float64)
    labels: list[Tensor] = [sample.gt_sem_seg.data.cpu().long() for sample in batch['data_samples']]
    return sum(float(sum_of_weights(one, one != ignore_index, weight, True)) for one in labels)
