#!/usr/bin/env python
"""Kill and preempt trainings at random moments, resume them, and compare the result with uninterrupted ones.

A run counts as equal if all its iterations, also the repeated ones, had the batches, losses and learning rates of the
uninterrupted run, and the last checkpoint the same weights, optimizer, schedule, averages and random states.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import forked_training as training
import torch

from mmseg_segmenter.engine import EXIT_CODE
from mmseg_segmenter.engine.precision import cpu_has_bfloat16

# Options by name. The config itself has dropout, stochastic depth and random augmentations.
VARIANTS: dict[str, dict[str, Any]] = {
    'plain': {},
    'EMA': dict(
        custom_hooks=[dict(type='RecordHook', priority='VERY_HIGH'), dict(type='EMAHook', momentum=0.1)],
    ),
    # checkpoints and validations fall between two updates
    'accumulation': dict(optim_wrapper__accumulative_counts=3),
    'layer decay': dict(
        optim_wrapper=dict(
            _delete_=True,
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
            constructor='ViTLayerDecayOptimWrapperConstructor',
            paramwise_cfg=dict(decay_rate=0.75),
        ),
    ),
}
if cpu_has_bfloat16():
    VARIANTS['bfloat16'] = dict(optim_wrapper__type='CpuAmpOptimWrapper')
# What happens on the way to a new checkpoint; `os` has these functions.
STEPS = ('fsync', 'replace', 'unlink', 'remove')
SEED = dict(randomness__seed=1)


def kill_in_step(step: str, after: bool, count: int) -> Callable[[], None]:
    """Return a function that makes the process kill itself in a certain call of a function of ``os``."""

    def prepare() -> None:
        function = getattr(os, step)
        calls = 0

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == count and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            if calls == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(os, step, counted)

    return prepare


class Injector:
    """Run trainings to their end with interruptions on the way.

    Args:
        folder: to work in.
        seed: of the moments.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.config = training.make_config(folder)
        self.counts: Counter[str] = Counter()
        self.seconds: dict[str, float] = {}
        for name, options in VARIANTS.items():
            began = time.monotonic()
            code = training.train(self.config, folder / name, **SEED, **options)
            assert code == 0, (folder / f'{name}.log').read_text()[-3000:]
            self.seconds[name] = time.monotonic() - began

    def run(self, variant: str, interrupt: Callable[['Injector', str, Path, dict[str, Any]], bool]) -> None:
        """Train one variant, interrupted up to 8 times, and compare.

        Args:
            variant: name.
            interrupt: starts the training, interrupts it, and returns whether it had come to its end.
        """
        work_dir = self.folder / 'interrupted'
        for _ in range(8):
            options = {**SEED, **VARIANTS[variant], 'train_dataloader__num_workers': self.random.choice([0, 0, 1, 2])}
            if interrupt(self, variant, work_dir, options):
                break
        else:
            assert training.train(self.config, work_dir, resume='auto', **options) == 0
        training.assert_same_training(work_dir, self.folder / variant)
        assert not list(work_dir.glob('.*.part')), 'left by a killed process'
        assert len(list(work_dir.glob('iter_*.pth'))) == 1 and len(list(work_dir.glob('best_*.pth'))) == 1
        shutil.rmtree(work_dir)


def kill(injector: Injector, variant: str, work_dir: Path, options: dict[str, Any]) -> bool:
    """Kill at a random moment, or in a random step of saving. What is noted as the last checkpoint is whole."""
    choose = injector.random
    prepare, delay = None, choose.uniform(0.1, injector.seconds[variant])
    if choose.random() < 0.4:
        prepare, delay = kill_in_step(choose.choice(STEPS), choose.random() < 0.5, choose.randint(1, 8)), 100.0
    pid = training.start(injector.config, work_dir, prepare, resume='auto', **options)
    end = time.monotonic() + delay
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            break
        time.sleep(0.002)
    else:
        os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return True
    assert code == -signal.SIGKILL, (code, (work_dir.with_suffix('.log')).read_text()[-2000:])
    injector.counts['SIGKILL in a step of saving' if prepare else 'SIGKILL at a random moment'] += 1
    note = work_dir / 'last_checkpoint'
    if note.exists():
        torch.load(note.read_text(), weights_only=True)
    return False


def preempt(injector: Injector, variant: str, work_dir: Path, options: dict[str, Any]) -> bool:
    """Send a signal to the process and its workers at a random moment after the start. Nothing is computed twice."""
    number = injector.random.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
    record, log = work_dir / 'record_0.jsonl', work_dir.with_suffix('.log')
    before = len(training.records(work_dir)) if record.exists() else 0
    pid = training.start(injector.config, work_dir, resume='auto', **options)
    while True:  # before its first iteration a run has nothing to save and handles no signals
        found, status = os.waitpid(pid, os.WNOHANG)
        if found or (record.exists() and len(training.records(work_dir)) > before):
            break
        time.sleep(0.002)
    if not found:
        time.sleep(injector.random.uniform(0, injector.seconds[variant] / 3))
        os.killpg(pid, number)
        code = training.wait(pid)
    else:
        code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return True
    if code == -number:
        return False  # it was at its end, and had given the signals back
    assert code == EXIT_CODE, (code, log.read_text()[-3000:])
    injector.counts[f'preemption by {number.name}'] += 1
    done = [row['iter'] for row in training.records(work_dir)]
    assert len(done) == len(set(done)), 'an iteration was repeated'
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=200)
    parser.add_argument('--preemptions', type=int, default=50)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        injector = Injector(Path(folder), args.seed)
        for interrupt, prefix, wanted in ((kill, 'SIGKILL', args.kills), (preempt, 'preemption', args.preemptions)):
            runs: Counter[str] = Counter()
            while sum(n for name, n in injector.counts.items() if name.startswith(prefix)) < wanted:
                variant = list(VARIANTS)[sum(runs.values()) % len(VARIANTS)]
                injector.run(variant, interrupt)
                runs[variant] += 1
                print(dict(injector.counts), flush=True)
            print(f'{prefix}: all of {sum(runs.values())} runs equal to uninterrupted ones ({dict(runs)})', flush=True)
    print(f'{time.monotonic() - began:.0f} s')


if __name__ == '__main__':
    main()
