"""Learning rates against the closed formula of the published schedules."""

import math
from pathlib import Path

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS
from zoo import read_config

from mmseg_segmenter.engine.warmup_one_cycle import WarmupOneCycleLR
from mmseg_segmenter.errors import UserError

CONFIGS = Path(__file__).parents[2] / 'configs' / 'segmenter'


def learning_rates(config, iterations=40000):
    """Return the learning rate of each iteration of a config, and that of a group with a tenth of it."""
    cfg = read_config(CONFIGS / f'segmenter_{config}.py')
    lr = cfg.optim_wrapper.optimizer.lr
    groups = [dict(params=[torch.nn.Parameter(torch.zeros(1))], lr=rate) for rate in (lr, lr / 10)]
    optimizer = torch.optim.SGD(groups, lr=lr)
    # as mmengine's runner: all are built, then each takes a step after each iteration
    wrapper = OptimWrapper(optimizer)
    schedulers = [
        PARAM_SCHEDULERS.build(scheduler, default_args=dict(optimizer=wrapper)) for scheduler in cfg.param_scheduler
    ]
    rates = []
    for _ in range(iterations):
        rates.append([group['lr'] for group in optimizer.param_groups])
        for scheduler in schedulers:
            scheduler.step()
    return rates


def dinov2(i):
    """mmcv 1's poly schedule, multiplied by its linear warm-up."""
    warmup = 1 - (1 - i / 1500) * (1 - 1e-6) if i < 1500 else 1
    return 1e-3 * (1 - i / 40000) * warmup


def dinov3(i):
    step = max(i - 1, 0)
    if step < 1500:
        return 1e-3 * (1 - (1 - step / 1500) * (1 - 1e-6)) * (1 - step / 40000)
    return 0.5e-3 * (1 + math.cos(math.pi * (step + 1) / 40000))


@pytest.mark.parametrize(
    ('config', 'formula'),
    [
        ('dinov2-b_linear_8xb2-40k_ade20k', dinov2),
        ('dinov3-b_linear_8xb2-40k_ade20k', dinov3),
    ],
)
def test_every_step_of_a_published_schedule(config, formula):
    rates = learning_rates(config)
    expected = [formula(i) for i in range(40000)]
    for i in (0, 1, 1499, 1500, 1501, 20000, 39999):
        assert rates[i][0] == pytest.approx(expected[i], rel=1e-9), i
    assert [rate for rate, _ in rates] == pytest.approx(expected, rel=1e-9)
    assert [rate for _, rate in rates] == pytest.approx([rate / 10 for rate in expected], rel=1e-9)


def test_resumed_schedule():
    """The state of the scheduler, on a new optimizer, continues the rates."""
    optimizers = [torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0) for _ in range(2)]
    kwargs = dict(total_steps=10, warmup_iters=3, by_epoch=False)
    one, other = (WarmupOneCycleLR(optimizer, **kwargs) for optimizer in optimizers)
    for _ in range(5):
        one.step()
    other.load_state_dict(one.state_dict())
    for _ in range(7):  # beyond the end it stays at 0
        one.step(), other.step()
        assert [o.param_groups[0]['lr'] for o in optimizers] == [one._get_value()[0]] * 2
    assert optimizers[0].param_groups[0]['lr'] == 0


@pytest.mark.parametrize('warmup', [-1, 10])
def test_wrong_warmup(warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(UserError, match=f'warmup_iters={warmup}; .* less than total_steps=10'):
        WarmupOneCycleLR(optimizer, total_steps=10, warmup_iters=warmup)
