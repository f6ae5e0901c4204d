"""The loss of EoMT against transformers', plain computations and invariants."""

import itertools
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from processes import run_processes
from tiny_eomt import tiny_eomt
from torch.testing import assert_close

from mmseg_segmenter.errors import UserError
from mmseg_segmenter.models.losses import MaskClassificationLoss
from mmseg_segmenter.models.losses.mask_classification_loss import Corners, sample_logits

IGNORED = 255


def random_case(seed, num_queries=6, num_classes=5, size=(12, 16), ignored=False):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randn(2, num_queries, 6, 8, generator=generator, requires_grad=True)
    classes = torch.randn(2, num_queries, num_classes + 1, generator=generator, requires_grad=True)
    labels = torch.randint(num_classes, (2, 3, 4), generator=generator)
    labels = labels.repeat_interleave(size[0] // 3, 1).repeat_interleave(size[1] // 4, 2)
    if ignored:
        labels[:, :, : size[1] // 2] = IGNORED
    return masks, classes, labels


def losses_of(images):
    """Return the losses of some images, and the gradient of a weight that all have in common.

    They are compared at the centre.
    """
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    logits, scores = (torch.randn(4, 5, n, generator=generator, dtype=torch.float64) for n in (1, 4))
    masks = weight * logits[images, :, :, None].expand(-1, -1, 4, 4)
    labels = torch.tensor([0, 2, 1, IGNORED])[images, None, None].expand(-1, 8, 8)
    with mock.patch('torch.rand', lambda *size, **options: torch.full(size, 0.5, **options)):
        losses = MaskClassificationLoss(num_points=16)([masks], [weight * scores[images]], labels)
    sum(losses.values()).backward()
    return {name: loss.item() for name, loss in losses.items()}, weight.grad.item()


def losses_of_process(images_of_rank):
    dist.init_process_group('gloo')
    return losses_of(images_of_rank[dist.get_rank()])


@pytest.mark.skipif(not dist.is_gloo_available(), reason='needs gloo')
def test_losses_are_averaged_over_all_processes():
    """Two processes with three images and one, without a mask, have on average the losses of one process with all."""
    expected, gradient = losses_of([0, 1, 2, 3])
    parts = run_processes(losses_of_process, 2, [[0, 1, 2], [3]])
    for name, value in expected.items():
        assert sum(losses[name] for losses, _ in parts) / 2 == pytest.approx(value, rel=1e-12), name
    assert sum(grad for _, grad in parts) / 2 == pytest.approx(gradient, rel=1e-12)
    assert parts[1][0]['loss_mask'] == 0 < parts[0][0]['loss_mask']


def one_hot(labels, classes):
    return (labels == classes[:, None, None]).float()


@pytest.mark.parametrize('images', [None, torch.tensor([1, 0, 1])])
def test_masks_at_points_are_those_of_grid_sample(images):
    _, _, labels = random_case(0)
    points = torch.rand(2 if images is None else 3, 200, 2) * 1.02 - 0.01  # at the border too
    corners = Corners.of(labels, points, images)
    chosen = labels if images is None else labels[images]
    for k in range(5):
        expected = sample_logits((chosen == k).float()[:, None], points)[:, 0]
        found = corners.mask(torch.full((len(points),), k))
        assert_close(found, expected, atol=1e-6, rtol=0)
    assert (corners.counts(IGNORED) == 1).all()


def cheapest(loss, masks, classes, labels, points):
    """Return the cheapest assignment of the classes of an image to queries, by trying all."""
    present = labels.unique()
    targets = sample_logits(one_hot(labels, present)[None], points)[0]
    logits = sample_logits(masks[None], points)[0]
    cost = torch.empty(len(logits), len(present))
    for q, (logit, scores) in enumerate(zip(logits, classes.softmax(-1), strict=True)):
        for t, target in enumerate(targets):
            p = logit.sigmoid()
            dice = 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
            entropy = F.binary_cross_entropy_with_logits(logit, target)
            cost[q, t] = 5 * entropy + 5 * dice - 2 * scores[present[t]]
    columns = torch.arange(len(present))
    best = min(
        itertools.permutations(range(len(logits)), len(present)), key=lambda rows: cost[list(rows), columns].sum()
    )
    return {(q, int(k)) for q, k in zip(best, present, strict=True)}


@pytest.mark.parametrize('seed', range(0, 200, 20))
def test_matching_is_the_cheapest(seed):
    loss = MaskClassificationLoss(num_points=16)
    for case in range(seed, seed + 20):
        masks, classes, labels = (x.detach() for x in random_case(case, num_queries=4, num_classes=3))
        present = [image.unique() for image in labels]
        torch.manual_seed(case)
        found = loss.match(masks, classes, labels, present, IGNORED)
        torch.manual_seed(case)
        for i in range(2):
            points = torch.rand(1, 16, 2)
            of_image = found.images == i
            pairs = zip(found.queries[of_image].tolist(), found.classes[of_image].tolist(), strict=True)
            assert set(pairs) == cheapest(loss, masks[i], classes[i], labels[i], points)


@pytest.mark.parametrize('seed', range(3))
def test_losses_and_gradients_equal_transformers(seed):
    module = pytest.importorskip('transformers.models.mask2former.modeling_mask2former')
    config = SimpleNamespace(
        num_labels=5, class_weight=2.0, mask_weight=5.0, dice_weight=5.0, no_object_weight=0.1, train_num_points=300,
        oversample_ratio=3.0, importance_sample_ratio=0.75,
    )  # fmt: skip
    theirs = module.Mask2FormerLoss(config, dict(loss_cross_entropy=2.0, loss_mask=5.0, loss_dice=5.0))
    masks, classes, labels = random_case(seed)
    present = [image.unique() for image in labels]
    targets = [one_hot(image, found) for image, found in zip(labels, present, strict=True)]
    results = []
    for compute in (
        lambda: MaskClassificationLoss(num_points=300)([masks], [classes], labels),
        lambda: theirs(masks, classes, targets, present),
    ):
        torch.manual_seed(seed)  # both draw the same points
        losses = compute()
        if 'loss_class' not in losses:
            weights = dict(loss_mask=5, loss_dice=5, loss_cross_entropy=2)
            losses = {key: weight * losses[key] for key, weight in weights.items()}
            losses['loss_class'] = losses.pop('loss_cross_entropy')
        gradients = torch.autograd.grad(sum(losses.values()), (masks, classes))
        results.append((losses, gradients))
    (losses, gradients), (expected, expected_gradients) = results
    for name in ('loss_mask', 'loss_dice', 'loss_class'):
        assert_close(losses[name].squeeze(), expected[name].squeeze(), atol=1e-5, rtol=0)
    for found, other in zip(gradients, expected_gradients, strict=True):
        assert_close(found, other, atol=1e-5, rtol=0)


def test_every_prediction_has_its_losses():
    masks, classes, labels = random_case(0)
    loss = MaskClassificationLoss(num_points=50)
    losses = loss([masks, masks * 2], [classes, classes], labels)
    assert set(losses) == {f'{i}loss_{name}' for i in ('', '0.') for name in ('mask', 'dice', 'class')}
    torch.manual_seed(0)
    first = loss([masks], [classes], labels)
    torch.manual_seed(0)
    again = loss([masks, masks * 2], [classes, classes], labels)
    assert_close(again['0.loss_mask'], first['loss_mask'])


def test_ignored_pixels_do_not_count():
    masks, classes, labels = random_case(1, ignored=True)
    losses = MaskClassificationLoss(num_points=200)([masks], [classes], labels)
    (gradient,) = torch.autograd.grad(losses['loss_mask'] + losses['loss_dice'], masks)
    assert gradient[..., :3].abs().max() < 1e-8  # mask pixels that only ignored pixels touch
    assert (gradient[..., 5:] != 0).any()


def test_images_without_labels():
    masks, classes, labels = random_case(1)
    losses = MaskClassificationLoss(num_points=50)([masks], [classes], torch.full_like(labels, IGNORED))
    assert losses['loss_mask'] == 0 and losses['loss_dice'] == 0
    expected = 2 * F.cross_entropy(classes.flatten(0, 1), torch.full((12,), 5))
    assert_close(losses['loss_class'], expected)
    sum(losses.values()).backward()
    assert masks.grad.abs().sum() == 0


def test_more_classes_than_queries():
    masks, classes, labels = random_case(2, num_queries=2)
    losses = MaskClassificationLoss(num_points=50)([masks], [classes], labels)
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    masks, classes, labels = random_case(3)
    loss = MaskClassificationLoss(num_points=50)
    results = []
    for masks_, classes_ in (
        (masks.to(dtype), classes.to(dtype)),
        (masks.to(dtype).float(), classes.to(dtype).float()),
    ):
        torch.manual_seed(0)
        results.append(loss([masks_], [classes_], labels))
    for name, value in results[0].items():
        assert value.dtype == torch.float32 and torch.equal(value, results[1][name])


def test_eomt_learns_a_picture():
    torch.manual_seed(0)
    loss = dict(type='MaskClassificationLoss', num_points=100)
    model = tiny_eomt(head=dict(num_queries=8, loss_decode=loss)).train()
    image, labels = torch.randn(1, 3, 32, 32), torch.arange(4).repeat_interleave(8).expand(1, 32, 32).clone()
    samples = [SegDataSample(gt_sem_seg=PixelData(data=labels))]
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        losses = model.loss(image, samples)
        sum(losses.values()).backward()
        optimizer.step()
    assert set(losses) == {f'decode.{i}loss_{name}' for i in ('', '0.') for name in ('mask', 'dice', 'class')}
    assert all(parameter.grad is not None for parameter in model.parameters())
    samples[0].set_metainfo(dict(ori_shape=(32, 32), img_shape=(32, 32)))
    with torch.no_grad():
        (result,) = model.eval().predict(image, samples)
    assert (result.pred_sem_seg.data == labels).float().mean() > 0.9


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(num_points=0), 'num_points=0, expected at least 1'),
        (dict(oversample_ratio=0.5), 'oversample_ratio=0.5, expected at least 1'),
        (dict(importance_sample_ratio=2), 'importance_sample_ratio=2, expected a number from 0 to 1'),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(UserError, match=message):
        MaskClassificationLoss(**options)
