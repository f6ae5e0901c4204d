import random
import subprocess
import sys
import time
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler, pseudo_collate
from torch.utils.data import DataLoader

from mmseg_segmenter.engine import sample_stream
from mmseg_segmenter.engine.random_state import isolated_random, random_state, seeded_random, set_random_state
from mmseg_segmenter.engine.sample_stream import SampleStream, seed_samples
from mmseg_segmenter.errors import UserError


class Noise:
    """Images whose content is drawn by each generator that a transform may use."""

    def __init__(self, length):
        self.metainfo = dict(classes=('a', 'b'))
        self.length = length
        self.loaded = 0

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.loaded += 1
        return index, random.random(), np.random.rand(), torch.rand(()).item()


def make_loop(length=10, iteration=0, batch_size=2, workers=0, sampler=InfiniteSampler, seed=3):
    dataset = Noise(length)
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler(dataset, seed=seed),
        num_workers=workers,
        collate_fn=pseudo_collate,
        persistent_workers=workers > 0,
    )
    runner = SimpleNamespace(seed=seed)
    return SimpleNamespace(dataloader=loader, dataloader_iterator=iter(loader), iter=iteration, epoch=0, runner=runner)


def take(loop, count):
    """Take batches as mmengine's loop does: first one for each iteration that is done."""
    for _ in range(loop.iter):
        next(loop.dataloader_iterator)
    return [list(zip(*next(loop.dataloader_iterator), strict=True)) for _ in range(count)]


@pytest.mark.parametrize('sampler', [InfiniteSampler, DefaultSampler])
@pytest.mark.parametrize('workers', [0, 2])
def test_samples_follow_from_their_place(workers, sampler):
    """Also beyond the end of a pass over the data, and after other numbers were drawn."""
    whole = make_loop(sampler=sampler)
    seed_samples(whole)
    wanted = take(whole, 14)
    assert len({numbers for batch in wanted for _, *rest in batch for numbers in rest}) == 3 * 28
    assert sorted(index for batch in wanted[:5] for index, *_ in batch) == list(range(10))
    later = make_loop(iteration=7, workers=workers, sampler=sampler, seed=8)
    next(later.dataloader_iterator)
    assert seed_samples(later, 3) == 3
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    assert take(later, 7) == wanted[7:]


def test_order_is_that_of_mmengine():
    loop = make_loop()
    seed_samples(loop)
    wanted = list(islice(InfiniteSampler(Noise(10), seed=3), 30))
    assert [index for batch in take(loop, 15) for index, *_ in batch] == wanted


def test_two_processes_take_the_samples_of_one(monkeypatch):
    whole = make_loop(length=9)
    seed_samples(whole)
    wanted = take(whole, 12)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(sample_stream, 'get_dist_info', lambda rank=rank: (rank, 2))
        monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda rank=rank: (rank, 2))
        part = make_loop(length=9, batch_size=1)
        seed_samples(part)
        parts.append(take(part, 12))
    assert [[*a, *b] for a, b in zip(*parts, strict=True)] == wanted


def test_getting_to_a_late_iteration():
    """150,000 iterations of 8 images of ADE20K: 1.2 million places, and no image."""
    loop = make_loop(length=20210, iteration=150000, batch_size=8)
    start = time.perf_counter()
    seed_samples(loop)
    (batch,) = take(loop, 1)
    assert time.perf_counter() - start < 10  # 0.5 s on an idle core
    assert loop.dataloader.dataset.loaded == 8
    wanted = islice(InfiniteSampler(Noise(20210), seed=3), 8 * 150000, 8 * 150001)
    assert [index for index, *_ in batch] == list(wanted)


def test_process_keeps_its_random_numbers():
    """With workers or without, the model draws the same."""
    drawn = []
    for workers in (0, 1):
        loop = make_loop(workers=workers)
        torch.manual_seed(0), np.random.seed(0), random.seed(0)
        seed_samples(loop)
        take(loop, 3)
        drawn.append((torch.rand(3).tolist(), np.random.rand(), random.random()))
    assert drawn[0] == drawn[1]


def test_dataset_keeps_its_attributes():
    loop = make_loop()
    seed_samples(loop)
    assert loop.dataloader.dataset.metainfo == dict(classes=('a', 'b')) and len(loop.dataloader.dataset) == 10
    assert len(loop.dataloader) == 5
    with pytest.raises(AttributeError, match='nothing'):
        loop.dataloader.dataset.nothing  # noqa: B018


def test_no_batch():
    """The endless search for one would hang."""
    sampler = DefaultSampler(Noise(3))
    stream = SampleStream(torch.utils.data.BatchSampler(sampler, 4, drop_last=True), 0, endless=True)
    with pytest.raises(UserError, match='the sampler yields no batch'):
        next(iter(stream))


def draw():
    return random.random(), np.random.randn(), torch.rand(()).item()


def test_random_states():
    np.random.randn()  # leaves a second number for the next call
    state = random_state()
    wanted = draw(), draw()
    set_random_state(torch.load(saved(state), weights_only=True))
    with isolated_random():
        draw()
    first = draw()
    with seeded_random(1, 2, 3):
        inside = draw()
    assert (first, draw()) == wanted
    with seeded_random(1, 2, 3):
        assert draw() == inside
    with seeded_random(1, 3, 2):
        assert not set(draw()) & set(inside)


def saved(content):
    import io

    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return file


def test_workers_end_with_the_process():
    """multiprocessing sends them one SIGTERM, which they survive, and waits for them."""
    code = """
import builtins
from torch.utils.data import DataLoader
from mmseg_segmenter.engine.sample_stream import outlive_signals
loader = DataLoader([0, 1], num_workers=1, persistent_workers=True)
outlive_signals(loader)
builtins.kept = iter(loader)  # not deleted before the process ends
print(next(builtins.kept))
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and 'tensor([0])' in result.stdout
