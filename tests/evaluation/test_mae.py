import pytest
import torch
from mmseg.registry import METRICS


def sample(logits, label):
    return dict(seg_logits=dict(data=logits), gt_sem_seg=dict(data=label))


def score(*samples):
    metric = METRICS.build(dict(type='MAEMetric'))
    metric.process({}, samples)
    return metric.evaluate(len(samples))['MAE']


def test_mean_over_pixels_then_images():
    p = torch.tensor([[0.9, 0.2], [0.6, 0.5]])
    logits = torch.stack([torch.log(1 - p), torch.log(p)])
    first = sample(logits, torch.tensor([[[1, 0], [0, 255]]]))
    second = sample(torch.tensor([[[0.25]]]), torch.tensor([[[1]]]))  # one probability, as of mmseg's binary mode
    assert score(first) == pytest.approx((0.1 + 0.2 + 0.6) / 3, abs=5e-5)
    assert score(first, second) == pytest.approx((0.3 + 0.75) / 2, abs=5e-5)


def test_perfect_and_all_wrong():
    label = torch.randint(0, 2, (1, 5, 6))
    logits = 1e4 * torch.cat([1.0 - 2 * label, 2.0 * label - 1])
    assert score(sample(logits, label)) == 0 and score(sample(-logits, label)) == 1


def test_an_image_without_labels_does_not_count():
    label = torch.zeros(1, 2, 2, dtype=torch.long)
    unlabelled = sample(torch.zeros(2, 2, 2), torch.full_like(label, 255))
    assert score(sample(torch.zeros(2, 2, 2), label), unlabelled) == 0.5


def test_several_processes_can_be_merged():
    """mmengine interleaves the results of processes and cuts them at the number of images: one result per image."""
    metric = METRICS.build(dict(type='MAEMetric'))
    unlabelled = sample(torch.zeros(2, 2, 2), torch.full((1, 2, 2), 255))
    metric.process({}, [unlabelled, unlabelled])
    assert len(metric.results) == 2


def test_wrong_input():
    label = torch.zeros(1, 2, 2, dtype=torch.long)
    with pytest.raises(ValueError, match=r'set model\.test_cfg\.return_logits=True'):
        score(dict(gt_sem_seg=dict(data=label)))
    with pytest.raises(ValueError, match='found 3 classes, expected 2'):
        score(sample(torch.zeros(3, 2, 2), label))
