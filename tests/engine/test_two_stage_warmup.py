"""Learning rates of EoMT against those of the authors' code: of each parameter, and at each step."""

from pathlib import Path

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from mmseg.registry import MODELS
from tiny_eomt import tiny_eomt
from zoo import read_config, shrink

from mmseg_segmenter.engine.two_stage_warmup import TwoStageWarmupPolyLR
from mmseg_segmenter.errors import UserError

CONFIGS = Path(__file__).parents[2] / 'configs' / 'eomt'


def published(step, in_backbone, total, head, backbone):
    """Return the rate divided by that of the optimizer."""
    if not in_backbone:
        return step / head if step < head else (1 - (step - head) / (total - head)) ** 0.9
    if step < head:
        return 0.0
    if step < head + backbone:
        return (step - head) / backbone
    return (1 - (step - head - backbone) / (total - head - backbone)) ** 0.9


def groups(*rates):
    """Return an optimizer with a group of the head and one of the backbone."""
    return torch.optim.SGD(
        [
            dict(params=[torch.nn.Parameter(torch.zeros(1))], lr=rate, in_backbone=bool(i))
            for i, rate in enumerate(rates)
        ],
        lr=1.0,
    )


@pytest.mark.parametrize('name', ['eomt_dinov2-l_8xb2-39k_ade20k', 'eomt_dinov3-l_8xb2-20k_ade20k'])
def test_every_step_of_a_published_schedule(name):
    (config,) = read_config(CONFIGS / f'{name}.py').param_scheduler
    optimizer = groups(1.0, 0.1)
    scheduler = PARAM_SCHEDULERS.build(config, default_args=dict(optimizer=optimizer))
    found, expected = [], []
    for step in range(config.total_steps):
        found += [group['lr'] for group in optimizer.param_groups]
        expected += [published(step, False, config.total_steps, *config.warmup_iters)]
        expected += [0.1 * published(step, True, config.total_steps, *config.warmup_iters)]
        scheduler.step()
    torch.testing.assert_close(
        torch.tensor(found, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize('name', ['eomt_dinov2-l_8xb2-39k_ade20k', 'eomt_dinov3-l_8xb2-20k_ade20k'])
def test_rate_of_each_parameter(name):
    """In the authors' code, block i of L has lr * 0.8 ** (L - 1 - i), and what is in front of block 0 its rate."""
    cfg = shrink(read_config(CONFIGS / f'{name}.py'))
    model = MODELS.build(cfg.model)
    lr, decay, depth = cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.paramwise_cfg.decay_rate, 4
    found = {id(group['params'][0]): group for group in build_optim_wrapper(model, cfg.optim_wrapper).param_groups}
    for key, param in model.named_parameters():
        exponent = 0
        if key.startswith('backbone.') and not key.startswith('backbone.ln1.'):
            exponent = depth - 1 - (int(key.split('.')[2]) if '.layers.' in key else 0)
        group = found.pop(id(param))
        assert group['lr'] == pytest.approx(lr * decay**exponent, rel=1e-12), key
        assert group['weight_decay'] == 0.05 and group['in_backbone'] == key.startswith('backbone.'), key
    assert len(found) == 1  # mmengine's own group, for the log


def test_resumed_schedule():
    optimizers = [groups(1.0, 0.5) for _ in range(2)]
    kwargs = dict(total_steps=12, warmup_iters=(2, 3), by_epoch=False)
    one, other = (TwoStageWarmupPolyLR(optimizer, **kwargs) for optimizer in optimizers)
    for _ in range(4):
        one.step()
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    other.load_state_dict(one.state_dict())
    for _ in range(10):  # beyond the end it stays at 0
        one.step(), other.step()
        rates = [[group['lr'] for group in optimizer.param_groups] for optimizer in optimizers]
        assert rates[0] == rates[1] == one._get_value()
    assert rates[0] == [0, 0]


@pytest.mark.parametrize('warmup', [(1,), (-1, 2), (4, 6)])
def test_wrong_warmup(warmup):
    with pytest.raises(UserError, match=r'warmup_iters=\(.*\); expected two numbers, .* less than total_steps=10'):
        TwoStageWarmupPolyLR(groups(1.0, 1.0), total_steps=10, warmup_iters=warmup)


def test_groups_that_do_not_say_to_which_part_they_belong():
    wrapper = build_optim_wrapper(tiny_eomt(), dict(optimizer=dict(type='SGD', lr=1.0)))
    with pytest.raises(UserError, match=r"optim_wrapper\.constructor='ViTLayerDecayOptimWrapperConstructor'"):
        TwoStageWarmupPolyLR(wrapper, total_steps=10, warmup_iters=(1, 1))
