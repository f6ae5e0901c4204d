"""upsampled_cross_entropy, and the heads' loss, against mmseg's path."""

import pytest
import torch
import torch.nn.functional as F
from allocations import LargestTensor
from mmengine.structures import PixelData
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import CrossEntropyLoss
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from mmseg_segmenter.models.dense import logit_map
from mmseg_segmenter.models.losses import upsampled_cross_entropy

K = 6


def problem(size=(37, 50), dtype=torch.float64):
    torch.manual_seed(0)
    logits = (3 * torch.randn(2, K, 5, 7, dtype=dtype)).requires_grad_()
    labels = torch.randint(0, K, (2, *size))
    labels[:, :9, 3:30] = 255
    return logits, labels


def head(**loss):
    return MODELS.build(
        dict(type='LinearHead', in_channels=8, num_classes=K, loss_decode=dict(type='CrossEntropyLoss') | loss)
    )


def results(method, head, logits, labels):
    """Losses, and the gradient of what training would minimise."""
    samples = [SegDataSample(gt_sem_seg=PixelData(data=one[None])) for one in labels]
    losses = method(head, logits, samples)
    names = [name for name in losses if name.startswith('loss')]
    (gradient,) = torch.autograd.grad(sum(losses[name] for name in names) * 3, logits)
    return losses, gradient


def assert_equals_mmseg(head, logits, labels, tolerance):
    ours, our_gradient = results(type(head).loss_by_feat, head, logits, labels)
    theirs, their_gradient = results(BaseDecodeHead.loss_by_feat, head, logits, labels)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=tolerance, atol=tolerance)
    assert our_gradient.abs().max() > 0 or logits.numel() == 0


WEIGHTS = [0.5, 2.0, 1.0, 0.1, 3.0, 0.7]
OPTIONS = [
    dict(avg_non_ignore=True),
    dict(avg_non_ignore=False),
    dict(reduction='sum'),
    dict(avg_non_ignore=True, loss_weight=0.4, loss_name='loss_seg'),
    dict(reduction='sum', class_weight=WEIGHTS),
]


@pytest.mark.parametrize('options', OPTIONS, ids=str)
@pytest.mark.parametrize('size', [(37, 50), (80, 112), (5, 7), (3, 4)], ids=str)
def test_equals_mmseg(options, size, monkeypatch):
    monkeypatch.setitem(logit_map._TILE_BYTES, 'cpu', 10_000)  # several tiles
    assert_equals_mmseg(head(**options), *problem(size), tolerance=1e-9)


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_equals_mmseg_in_float32(options):
    assert_equals_mmseg(head(**options), *problem(dtype=torch.float32), tolerance=1e-5)


@pytest.mark.parametrize('avg_non_ignore', [True, False])
def test_class_weight_equals_mmseg(avg_non_ignore):
    """mmseg can average class weights only if the ignored label is a class, too."""
    one = head(class_weight=WEIGHTS, avg_non_ignore=avg_non_ignore)
    one.ignore_index = 2
    logits, labels = problem()
    labels[labels == 255] = 2
    assert_equals_mmseg(one, logits, labels, tolerance=1e-9)


def test_class_weight_with_an_ignored_label_is_torchs_weighted_mean():
    one = head(class_weight=WEIGHTS, avg_non_ignore=True)
    logits, labels = problem()
    ours, gradient = results(type(one).loss_by_feat, one, logits, labels)
    upsampled = F.interpolate(logits, labels.shape[1:], mode='bilinear')
    expected = F.cross_entropy(upsampled, labels, torch.tensor(WEIGHTS, dtype=torch.float64), ignore_index=255)
    torch.testing.assert_close(ours['loss_ce'], expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, torch.autograd.grad(3 * expected, logits)[0], rtol=1e-6, atol=1e-9)


def test_align_corners():
    one = head(avg_non_ignore=True)
    one.align_corners = True
    assert_equals_mmseg(one, *problem(), tolerance=1e-9)


def test_only_ignored_pixels():
    one = head(avg_non_ignore=True)
    logits, labels = problem()
    losses, gradient = results(type(one).loss_by_feat, one, logits, torch.full_like(labels, 255))
    assert losses['loss_ce'] == 0 and gradient.abs().max() == 0


def test_gradcheck():
    logits, labels = problem((9, 11))
    logits, labels = logits[:1, :, :2, :3].detach().requires_grad_(), labels[:1, 5:]
    weight = torch.tensor(WEIGHTS, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: upsampled_cross_entropy(x, labels, weight)[0], logits)


def test_half_precision_logits_are_summed_in_float32():
    logits, labels = problem(dtype=torch.float32)
    half = logits.detach().bfloat16().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16):
        loss, _ = upsampled_cross_entropy(half, labels)
    exact, _ = upsampled_cross_entropy(half.detach().float(), labels)
    assert loss.dtype == torch.float32 and torch.equal(loss, exact)
    loss.backward()
    assert half.grad.dtype == torch.bfloat16


def test_loss_scaling_reaches_the_gradient():
    """Scale the loss as a GradScaler does; backward twice gives the same."""
    logits, labels = problem()
    loss, _ = upsampled_cross_entropy(logits, labels)
    (once,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (scaled,) = torch.autograd.grad(loss * 1024, logits)
    torch.testing.assert_close(scaled, once * 1024, rtol=0, atol=0)


def test_without_gradient():
    logits, labels = problem()
    with torch.no_grad(), LargestTensor() as made:
        loss, correct = upsampled_cross_entropy(logits, labels)
    assert not made.called('aten.mul_') and loss.grad_fn is None
    with LargestTensor() as made:
        upsampled_cross_entropy(logits, labels)
    assert made.called('aten.mul_')
    upsampled = F.interpolate(logits, labels.shape[1:], mode='bilinear')
    assert correct == (upsampled.argmax(1) == labels).sum()
    torch.testing.assert_close(loss, F.cross_entropy(upsampled, labels, ignore_index=255, reduction='sum'))


def test_nothing_as_large_as_the_logits(monkeypatch):
    monkeypatch.setitem(logit_map._TILE_BYTES, 'cpu', 100_000)
    torch.manual_seed(0)
    logits = torch.randn(2, 50, 10, 10, requires_grad=True)
    labels = torch.randint(0, 50, (2, 160, 160))
    one = head()
    with LargestTensor() as largest:
        results(type(one).loss_by_feat, one, logits, labels)
    with LargestTensor() as theirs:
        results(BaseDecodeHead.loss_by_feat, one, logits, labels)
    assert largest.numel <= 2 * 160 * 160 and theirs.numel >= 2 * 50 * 160 * 160


class _Other(CrossEntropyLoss):
    pass


@pytest.mark.parametrize(
    'options',
    [dict(type='DiceLoss'), dict(type='FocalLoss'), dict(reduction='none'), dict(type=_Other)],
    ids=['dice', 'focal', 'unreduced', 'derived'],
)
def test_other_losses_are_left_to_mmseg(options, monkeypatch):
    one = head(**options) if 'type' not in options else MODELS.build(
        dict(type='LinearHead', in_channels=8, num_classes=K, loss_decode=options)
    )  # fmt: skip
    calls = []
    monkeypatch.setattr(BaseDecodeHead, 'loss_by_feat', lambda *args: calls.append(args) or {})
    one.loss_by_feat(problem()[0], [])
    assert len(calls) == 1


def test_a_list_of_one_loss_is_that_loss(monkeypatch):
    one = MODELS.build(
        dict(type='LinearHead', in_channels=8, num_classes=K, loss_decode=[dict(type='CrossEntropyLoss')])
    )
    assert_equals_mmseg(one, *problem(), 1e-9)
    monkeypatch.setattr(BaseDecodeHead, 'loss_by_feat', None)
    results(type(one).loss_by_feat, one, *problem())


def test_several_losses_and_samplers_are_left_to_mmseg(monkeypatch):
    calls = []
    monkeypatch.setattr(BaseDecodeHead, 'loss_by_feat', lambda *args: calls.append(args) or {})
    ce = dict(type='CrossEntropyLoss')
    common = dict(type='LinearHead', in_channels=8, num_classes=K)
    for options in (dict(loss_decode=[ce, ce]), dict(loss_decode=ce, sampler=dict(type='OHEMPixelSampler'))):
        MODELS.build(common | options).loss_by_feat(None, [])
    assert len(calls) == 2


@pytest.mark.gpu
def test_gpu_equals_cpu():
    logits, labels = problem()
    ours = results(type(head()).loss_by_feat, head(), logits, labels)
    on_gpu = results(type(head()).loss_by_feat, head(), logits.detach().cuda().requires_grad_(), labels.cuda())
    torch.testing.assert_close(on_gpu[1].cpu(), ours[1], rtol=1e-9, atol=1e-9)
    for name, value in on_gpu[0].items():
        torch.testing.assert_close(value.cpu(), ours[0][name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('weights', [WEIGHTS[1:], [*WEIGHTS, 1.0]], ids=len)
@pytest.mark.parametrize('in_list', [False, True])
def test_one_weight_per_class(weights, in_list):
    loss = dict(type='CrossEntropyLoss', class_weight=weights)
    message = rf'class_weight has {len(weights)} weights, expected one for each of the {K} classes'
    with pytest.raises(ValueError, match=message):
        MODELS.build(dict(type='LinearHead', in_channels=8, num_classes=K, loss_decode=[loss] if in_list else loss))
