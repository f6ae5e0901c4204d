"""The masked attention of EoMT is annealed as published, and exactly on resume."""

import os
import signal
from types import SimpleNamespace

import forked_training as training
import pytest
import torch
from test_resume import stop
from tiny_eomt import tiny_eomt

from mmseg_segmenter.engine import MaskAnnealingHook
from mmseg_segmenter.errors import UserError


def run_to(hook, model, iteration):
    runner = SimpleNamespace(model=model, iter=iteration)
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    return model.decode_head.mask_probabilities


def published(start, current, end):
    """Compute the value as the authors' code does, in float32."""
    if current < start:
        return torch.ones(())
    if current >= end:
        return torch.zeros(())
    return (1 - torch.tensor((current - start) / (end - start))).pow(0.9)


def test_every_step_of_the_published_schedule():
    start, end = [0, 6520, 9780, 13040], [3000, 9780, 13040, 16300]  # DINOv3 on ADE20K
    hook, model = MaskAnnealingHook(start, end), tiny_eomt(head=dict(num_blocks=4), backbone=dict(num_layers=4))
    hook.before_train(SimpleNamespace(model=model))
    for iteration in range(0, 17000, 7):
        hook.before_train_iter(SimpleNamespace(iter=iteration), 0)
        expected = torch.stack([published(a, iteration, b) for a, b in zip(start, end, strict=True)])
        torch.testing.assert_close(model.decode_head.mask_probabilities, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ('start', 'end', 'message'),
    [
        ([0], [10, 20], r'start=\[0\], end=\[10, 20\]; expected as many ends as starts'),
        ([10], [10], 'each after its start'),
        ([-1], [10], 'each after its start'),
    ],
)
def test_wrong_iterations(start, end, message):
    with pytest.raises(UserError, match=message):
        MaskAnnealingHook(start, end)


def test_another_number_of_blocks():
    with pytest.raises(UserError, match=r'have 2 iterations; expected 1, one for each block'):
        run_to(MaskAnnealingHook([0, 0], [1, 1]), tiny_eomt(), 0)


def test_another_head():
    head = torch.nn.Linear(1, 1)
    with pytest.raises(UserError, match=r'decode_head\.type=Linear, expected EoMTHead'):
        run_to(MaskAnnealingHook([0], [1]), SimpleNamespace(decode_head=head), 0)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='forks')
def test_run_killed_while_annealing_continues_exactly(tmp_path):
    config = training.make_config(tmp_path)
    options = dict(
        randomness__seed=1,
        model__type='EoMT',
        model__backbone__final_norm=True,
        model__decode_head=dict(
            _delete_=True,
            type='EoMTHead',
            in_channels=16,
            num_queries=6,
            num_blocks=2,
            num_classes=150,
            loss_decode=dict(type='MaskClassificationLoss', num_points=64),
        ),
        optim_wrapper__optimizer__lr=1e-3,
        custom_hooks=[
            dict(type='RecordHook', priority='VERY_HIGH'),
            dict(type='MaskAnnealingHook', start=[2, 6], end=[14, 22]),
        ],
    )
    assert training.train(config, tmp_path / 'whole', **options) == 0
    assert stop(config, tmp_path / 'run', 10, **options) == -signal.SIGKILL
    assert training.train(config, tmp_path / 'run', resume=True, **options) == 0
    training.assert_same_training(tmp_path / 'run', tmp_path / 'whole')
