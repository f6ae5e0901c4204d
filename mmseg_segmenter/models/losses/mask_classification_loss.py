"""Loss of models that predict a class and a mask for each of a set of queries.

Shapes: B images, Q queries, K classes, h x w mask logits, H x W pixels, M matched pairs of a query and a mask, T masks
of an image, P points.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmseg.registry import MODELS
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ...errors import UserError


class Matching(NamedTuple):
    """Pairs of a query and the class whose mask it is trained to predict.

    Attributes:
        images: (M,) index in the batch.
        queries: (M,) index of the query.
        classes: (M,) class of the mask.
    """

    images: Tensor
    queries: Tensor
    classes: Tensor


class Corners(NamedTuple):
    """Labels of the four pixels around each point of a label map.

    They give masks at points without making the masks.

    Attributes:
        labels: (4, N, P); at the border, those of the pixels nearest to the point.
        weights: (4, N, P) in a linear interpolation.
        inside: (4, N, P) whether a pixel is inside of the image.
    """

    labels: Tensor
    weights: Tensor
    inside: Tensor

    @classmethod
    def of(cls, labels: Tensor, points: Tensor, images: Tensor | None = None) -> 'Corners':
        """Look up the labels around points.

        Args:
            labels: (B, H, W).
            points: (N, P, 2) as in :func:`sample_logits`.
            images: (N,) index of the image that points belong to. Default: 0, 1, ...
        """
        height, width = labels.shape[1:]
        x, y = (points * points.new_tensor((width, height)) - 0.5).unbind(dim=-1)  # (N, P), in pixels
        left, top = x.floor(), y.floor()
        if images is None:
            images = torch.arange(len(points), device=labels.device)
        found = []
        for row, row_weight in ((top, top + 1 - y), (top + 1, y - top)):
            for column, column_weight in ((left, left + 1 - x), (left + 1, x - left)):
                inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                rows, columns = row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long()
                found.append((labels[images[:, None], rows, columns], row_weight * column_weight, inside))
        return cls(*(torch.stack(parts) for parts in zip(*found, strict=True)))

    def mask(self, classes: Tensor) -> Tensor:
        """Return the masks of classes (T,) at the points, (T, P), equal to :func:`sample_logits` of them.

        There is one row of points for all classes (N = 1), or one for each (N = T).
        """
        return ((self.labels == classes[:, None]) * self.weights * self.inside).sum(dim=0)

    def counts(self, ignore_index: int) -> Tensor:
        """Return how much each point counts, (N, P): 0 among ignored pixels, 1 among others."""
        return 1 - ((self.labels == ignore_index) * self.weights).sum(dim=0)


@MODELS.register_module()
class MaskClassificationLoss(nn.Module):
    """Compute the loss of Mask2Former (arXiv 2112.01527, section 3.2.3) as EoMT uses it.

    The classes in an image are matched with queries such that the sum of their
    costs is lowest. The masks of matched queries are compared at points: three
    quarters of them where the prediction is least certain. Queries without a
    match are to predict no class. Each class in a label map is one mask.

    Ignored pixels do not count. In the code of EoMT, they are background of
    all masks. Masks and classes are averaged over all processes; in the code
    of EoMT, classes are averaged over those of a process.

    Args:
        num_points: points P at which a mask is compared.
        oversample_ratio: points that are looked at for each one that is used.
        importance_sample_ratio: share of points at which the prediction is
            least certain; the others are drawn uniformly.
        mask_weight: weight of the cross-entropy of masks.
        dice_weight: weight of the dice loss of masks.
        class_weight: weight of the cross-entropy of classes.
        no_object_weight: weight of queries without a match in the latter.

    Raises:
        UserError: a number is out of range.
    """

    def __init__(
        self,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        class_weight: float = 2.0,
        no_object_weight: float = 0.1,
    ) -> None:
        super().__init__()
        for name, value, valid in (
            ('num_points', num_points, num_points >= 1),
            ('oversample_ratio', oversample_ratio, oversample_ratio >= 1),
            ('importance_sample_ratio', importance_sample_ratio, 0 <= importance_sample_ratio <= 1),
        ):
            if not valid:
                expected = 'a number from 0 to 1' if name == 'importance_sample_ratio' else 'at least 1'
                raise UserError(f'MaskClassificationLoss: {name}={value}, expected {expected}')
        self.num_points = num_points
        self.num_candidates = int(num_points * oversample_ratio)
        self.num_uncertain = int(num_points * importance_sample_ratio)
        self.mask_weight, self.dice_weight, self.class_weight = mask_weight, dice_weight, class_weight
        self.no_object_weight = no_object_weight

    def forward(
        self,
        mask_logits: Sequence[Tensor],
        class_logits: Sequence[Tensor],
        labels: Tensor,
        ignore_index: int = 255,
    ) -> dict[str, Tensor]:
        """Return the weighted losses of several predictions for the same images.

        Args:
            mask_logits: of each prediction, (B, Q, h, w).
            class_logits: of each prediction, (B, Q, K + 1); the last one stands for no class.
            labels: (B, H, W) classes.
            ignore_index: label of pixels that do not count.

        Returns:
            ``loss_mask``, ``loss_dice`` and ``loss_class`` of the last prediction; those of the others begin with
            ``0.``, ``1.``, ...
        """
        losses: dict[str, Tensor] = {}
        present = [found[found != ignore_index] for found in map(torch.unique, labels)]
        last = len(mask_logits) - 1
        with torch.autocast(labels.device.type, enabled=False):
            for i, (masks, classes) in enumerate(zip(mask_logits, class_logits, strict=True)):
                dtype = torch.promote_types(masks.dtype, torch.float32)
                found = self._losses(masks.to(dtype), classes.to(dtype), labels, present, ignore_index)
                losses |= {name if i == last else f'{i}.{name}': loss for name, loss in found.items()}
        return losses

    def _losses(
        self, masks: Tensor, classes: Tensor, labels: Tensor, present: Sequence[Tensor], ignore_index: int
    ) -> dict[str, Tensor]:
        matching = self.match(masks.detach(), classes.detach(), labels, present, ignore_index)
        mask_loss, dice_loss = self._mask_losses(masks, labels, matching, ignore_index)
        return dict(
            loss_mask=self.mask_weight * mask_loss,
            loss_dice=self.dice_weight * dice_loss,
            loss_class=self.class_weight * self._class_loss(classes, matching),
        )

    @torch.no_grad()
    def match(
        self, masks: Tensor, classes: Tensor, labels: Tensor, present: Sequence[Tensor], ignore_index: int
    ) -> Matching:
        """Match the classes in each image with queries (Hungarian algorithm).

        Args:
            masks: (B, Q, h, w) logits.
            classes: (B, Q, K + 1) logits.
            labels: (B, H, W) classes.
            present: classes of each image, without the one ignored.
            ignore_index: label of pixels that do not count.
        """
        found = []
        for i, (mask, scores, image, targets) in enumerate(zip(masks, classes, labels, present, strict=True)):
            points = torch.rand(1, self.num_points, 2, device=masks.device, dtype=masks.dtype)
            logits = sample_logits(mask[None], points)[0]  # (Q, P)
            corners = Corners.of(image[None], points)
            counts = corners.counts(ignore_index)  # (1, P)
            belongs = corners.mask(targets) * counts  # (T, P)
            cost = self.mask_weight * _mask_costs(logits, belongs, counts)
            cost += self.dice_weight * _dice_costs(logits, belongs, counts)
            cost -= self.class_weight * scores.softmax(dim=-1)[:, targets]
            rows, columns = linear_sum_assignment(cost.nan_to_num(0).clamp(-1e10, 1e10).cpu().numpy())
            queries, chosen = torch.as_tensor(rows), torch.as_tensor(columns)
            found.append((torch.full_like(queries, i), queries, targets.cpu()[chosen]))
        return Matching(*(torch.cat(parts).to(masks.device) for parts in zip(*found, strict=True)))

    def _mask_losses(
        self, masks: Tensor, labels: Tensor, matching: Matching, ignore_index: int
    ) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy and the dice loss of the masks of matched queries, before their weights."""
        matched = masks[matching.images, matching.queries][:, None]  # (M, 1, h, w)
        points = self._points(matched.detach())
        logits = sample_logits(matched, points)[:, 0]  # (M, P)
        with torch.no_grad():
            corners = Corners.of(labels, points, matching.images)
            counts = corners.counts(ignore_index)  # (M, P)
            belongs = corners.mask(matching.classes) * counts
        entropy = F.binary_cross_entropy_with_logits(logits, belongs, weight=counts, reduction='none')
        entropy = entropy.sum(dim=1) / counts.sum(dim=1).clamp(min=1)
        probabilities = logits.sigmoid() * counts
        dice = 1 - (2 * (probabilities * belongs).sum(dim=1) + 1) / ((probabilities + belongs).sum(dim=1) + 1)
        num_masks = _mean_over_processes(logits.new_tensor(len(logits))).clamp(min=1)
        return entropy.sum() / num_masks, dice.sum() / num_masks

    @torch.no_grad()
    def _points(self, masks: Tensor) -> Tensor:
        """Draw the points (M, P, 2) at which masks (M, 1, h, w) are compared."""
        candidates = torch.rand(len(masks), self.num_candidates, 2, device=masks.device, dtype=masks.dtype)
        uncertainty = -sample_logits(masks, candidates)[:, 0].abs()
        chosen = uncertainty.topk(self.num_uncertain, dim=1).indices
        uncertain = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
        num_others = self.num_points - self.num_uncertain
        others = torch.rand(len(masks), num_others, 2, device=masks.device, dtype=masks.dtype)
        return torch.cat((uncertain, others), dim=1)

    def _class_loss(self, classes: Tensor, matching: Matching) -> Tensor:
        """Return the cross-entropy of the classes of all queries, before its weight."""
        num_classes = classes.shape[-1] - 1
        targets = torch.full(classes.shape[:2], num_classes, device=classes.device)
        targets[matching.images, matching.queries] = matching.classes.to(targets.dtype)
        weight = classes.new_ones(num_classes + 1)
        weight[-1] = self.no_object_weight
        total = F.cross_entropy(classes.flatten(0, 1), targets.flatten(), weight, reduction='sum')
        return total / _mean_over_processes(weight[targets].sum())


def sample_logits(masks: Tensor, points: Tensor) -> Tensor:
    """Return masks at points, interpolated linearly; outside they are 0.

    Args:
        masks: (N, Q, h, w).
        points: (N, P, 2) x and y, from 0 (left, top) to 1 (right, bottom).

    Returns:
        (N, Q, P).
    """
    grid = (2 * points - 1)[:, :, None]
    return F.grid_sample(masks, grid, align_corners=False)[..., 0]


def _mask_costs(logits: Tensor, belongs: Tensor, counts: Tensor) -> Tensor:
    """Return the cross-entropy (Q, T) of masks (Q, P) and targets (T, P), averaged over points that count (1, P)."""
    # softplus(-x) = softplus(x) - x
    total = F.softplus(logits) @ counts.T - logits @ belongs.T
    return total / counts.sum().clamp(min=1)


def _dice_costs(logits: Tensor, belongs: Tensor, counts: Tensor) -> Tensor:
    """Return the dice loss (Q, T), arguments as :func:`_mask_costs`."""
    probabilities = logits.sigmoid() * counts
    total = probabilities.sum(dim=1)[:, None] + belongs.sum(dim=1)
    return 1 - (2 * probabilities @ belongs.T + 1) / (total + 1)


def _mean_over_processes(value: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value
