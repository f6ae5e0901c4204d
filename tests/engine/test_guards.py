"""A training stops at a loss that is not finite, and before one whose classes cannot be right."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from mmengine.logging import MMLogger
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.structures import BaseDataElement
from processes import run_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmseg_segmenter.engine import DataGuardHook, FiniteLossHook
from mmseg_segmenter.errors import UserError

NAN = float('nan')


def train(losses, accumulate=1, wrapper_type=OptimWrapper, ddp=False, hook=None, scale=None, **args):
    """Train a line on batches; a loss that is not finite is multiplied by the number given."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    model = DistributedDataParallel(model) if ddp else model
    options = {} if scale is None else dict(loss_scale=dict(init_scale=scale))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    wrapper = wrapper_type(optimizer=optimizer, accumulative_counts=accumulate, **options)
    wrapper.initialize_count_status(model, 0, len(losses))
    logger = MMLogger.get_current_instance()
    runner = SimpleNamespace(optim_wrapper=wrapper, iter=0, logger=logger, model=model, _resume=False)
    hook = hook or FiniteLossHook(**args)
    hook.before_train(runner)
    history = []
    for i, factor in enumerate(losses):
        runner.iter = i
        batch = dict(data_samples=[BaseDataElement(metainfo=dict(img_path=f'{i}.jpg'))])
        hook.before_train_iter(runner, i, batch)
        try:
            with OptimWrapper.optim_context(wrapper, model):
                loss = model(torch.ones(1, 1)).sum() ** 2 * factor
            wrapper.update_params(loss)
        except UserError as error:
            return history, model, str(error)
        history.append(copy.deepcopy(model.state_dict()))
    return history, model, ''


def test_stops_before_the_update():
    history, model, message = train([1.0, 1.0, NAN, 1.0])
    assert message.startswith('iteration 3, learning rate 0.1: the loss is nan, images 2.jpg. ')
    assert len(history) == 2 and all(torch.equal(a, history[-1][key]) for key, a in model.state_dict().items())


@pytest.mark.parametrize('bad', [NAN, float('inf')])
def test_skips_as_if_the_batch_had_not_been(bad):
    _, model, message = train([1.0, bad, 1.0, bad, 1.0], max_skipped=2)
    expected, _, _ = train([1.0, 1.0, 1.0])
    assert not message and all(torch.equal(a, expected[-1][key]) for key, a in model.state_dict().items())
    _, _, message = train([bad, 1.0, bad, bad], max_skipped=2)
    assert message.startswith('iteration 4, ') and 'after 2 skipped batches' in message


def test_skips_one_of_the_accumulated_batches():
    """The update then has the gradients of the others; with none, there is no update."""
    history, _, _ = train([1.0, NAN, NAN, NAN], accumulate=2, max_skipped=3)
    expected, _, _ = train([0.5])
    for state in history[1:]:
        assert all(torch.equal(value, expected[-1][key]) for key, value in state.items())


def train_ranks(losses, accumulate, max_skipped):
    """Train in one process of several, on its losses; return its weights and message as plain values."""
    dist.init_process_group('gloo')
    history, model, message = train(losses[dist.get_rank()], accumulate, ddp=True, max_skipped=max_skipped)
    return len(history), [value.item() for value in model.module.state_dict().values()], message


def test_one_of_two_processes():
    """Both leave the batch out, also the last of accumulated ones, whose backward pass averages; then both stop."""
    losses = [[0.2, 1.0, 0.5, 2.0, 1.0], [0.6, NAN, NAN, 1.0, NAN]]
    (number, weights, message), *others = run_processes(train_ranks, 2, losses, 2, 2)
    assert others == [(number, weights, message)] and number == 4
    assert message.startswith('iteration 5, learning rate 0.1: the loss of process 1 is nan, images 4.jpg, after 2 ')
    # The mean over processes and the two batches of an update; a batch that is left out counts as zero.
    _, expected, _ = train([(0.2 + 0.6) / 4, 3.0 / 4])
    torch.testing.assert_close(torch.tensor(weights), torch.cat([v.flatten() for v in expected.state_dict().values()]))


def test_updates_that_the_scaler_skips_do_not_count(monkeypatch):
    """The loss is finite, the scaled one is not. A loss that is not finite by itself stops in fp16 too."""
    module = 'mmengine.optim.optimizer.amp_optimizer_wrapper'
    monkeypatch.setattr(f'{module}.is_cuda_available', lambda: True)
    monkeypatch.setattr(f'{module}.GradScaler', partial(torch.amp.GradScaler, 'cpu'))
    history, model, message = train([1.0, 1e36, 1.0], wrapper_type=AmpOptimWrapper, scale=65536.0)
    expected, _, _ = train([1.0, 1.0])
    assert not message and len(history) == 3
    torch.testing.assert_close(model.state_dict(), expected[-1])
    _, _, message = train([1.0, NAN], wrapper_type=AmpOptimWrapper, scale=65536.0)
    assert message.startswith('iteration 2, learning rate 0.1: the loss is nan')


def test_a_resumed_training_continues_to_count():
    first, second = FiniteLossHook(max_skipped=2), FiniteLossHook(max_skipped=2)
    train([NAN, 1.0], hook=first)
    checkpoint = dict(state_dict={})
    first.before_save_checkpoint(SimpleNamespace(iter=1), checkpoint)
    second.after_load_checkpoint(SimpleNamespace(_resume=False), checkpoint)
    assert second.skipped == 0  # load_from: another training
    second.after_load_checkpoint(SimpleNamespace(_resume=True), checkpoint)
    history, _, message = train([1.0, NAN, NAN], hook=second)
    assert len(history) == 2 and 'after 2 skipped batches' in message


def test_weights_that_are_not_finite_are_not_saved():
    runner = SimpleNamespace(iter=9)
    hook = FiniteLossHook()
    hook.before_save_checkpoint(runner, dict(state_dict=dict(a=torch.ones(2), b=torch.ones(1, dtype=torch.int64))))
    with pytest.raises(UserError, match=r'iteration 10: head\.weight has values that are not finite'):
        hook.before_save_checkpoint(runner, dict(state_dict={'head.weight': torch.tensor([1, NAN])}))


def test_wrong_option():
    with pytest.raises(UserError, match='max_skipped=-1; expected a number of batches'):
        FiniteLossHook(max_skipped=-1)


@pytest.mark.parametrize(('in_head', 'out_channels', 'names', 'sound'), [
    (3, 3, 'abc', True), (4, 4, 'abc', False), (2, 2, 'abc', False), (1, 1, 'ab', True), (2, 1, 'ab', True),
])  # fmt: skip
def test_number_of_classes(in_head, out_channels, names, sound):
    model = nn.Module()
    model.decode_head = SimpleNamespace(num_classes=in_head, out_channels=out_channels)
    dataset = SimpleNamespace(metainfo=dict(classes=list(names)))
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset))
    runner = SimpleNamespace(model=model, train_loop=loop, val_loop=None, cfg={})
    if sound:
        DataGuardHook().before_train(runner)
        return
    message = (
        rf'num_classes={in_head}, but train_dataloader.dataset has {len(names)} classes \({", ".join(names)}\); set'
    )
    with pytest.raises(UserError, match=message):
        DataGuardHook().before_train(runner)


def test_skip_bad_needs_the_wrapper():
    runner = SimpleNamespace(
        model=nn.Module(), train_loop=SimpleNamespace(dataloader=SimpleNamespace(dataset=SimpleNamespace())),
        val_loop=None, cfg=dict(skip_bad=True),
    )  # fmt: skip
    runner.model.decode_head = SimpleNamespace(num_classes=2)
    with pytest.raises(UserError, match="wrap the dataset: dict\\(type='SkipBadSamples'"):
        DataGuardHook().before_train(runner)
