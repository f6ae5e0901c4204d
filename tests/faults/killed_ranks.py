#!/usr/bin/env python
"""Kill random processes of a training under torchrun, which starts all of them again, and compare the weights."""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from processes import free_port, process_of_rank
from tiny_training import training_config, write_dataset

from mmseg_segmenter.checkpoints.read import read_tensors

ROOT = Path(__file__).parent.parent.parent
PROCESSES = 2


def start(config: str, log: Path, restarts: int) -> subprocess.Popen[bytes]:
    env = {
        **os.environ, 'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}', 'PORT': str(free_port()),
        'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'MAX_RESTARTS': str(restarts),
    }  # fmt: skip
    command = ['bash', str(ROOT / 'tools' / 'dist_train.sh'), config, str(PROCESSES)]
    with open(log, 'wb') as file:
        return subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT)


def wait_for_checkpoint(run: subprocess.Popen[bytes], work_dir: Path, after: str) -> str:
    """Return what ``last_checkpoint`` says once it differs from ``after``."""
    deadline = time.monotonic() + 300
    note = work_dir / 'last_checkpoint'
    while time.monotonic() < deadline and run.poll() is None:
        if note.exists() and note.read_text() != after:
            return note.read_text()
        time.sleep(0.02)
    raise RuntimeError(f'no checkpoint after {after or "the start"}')


def wait_for_rank(rank: int, work_dir: Path) -> int:
    """Return the ID of a process, also if the other one saved before it ended, and torchrun has to start both first."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return process_of_rank(rank, work_dir)
        except LookupError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--times', type=int, default=20)
    times, choose = parser.parse_args().times, random.Random(0)
    checkpoint = dict(_delete_=True, type='SegmenterCheckpointHook', by_epoch=False, interval=10, max_keep_ckpts=2)
    iterations = 30 * times + 100
    options = {
        'train_cfg.max_iters': iterations, 'train_cfg.val_interval': iterations,
        'default_hooks.checkpoint': checkpoint, 'model.decode_head.drop_rate': 0.1,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        data, weights = write_dataset(Path(folder) / 'data'), []
        for name, kills in (('whole', 0), ('killed', times)):
            work_dir, log = Path(folder) / name, Path(folder) / f'{name}.log'
            run, last, ranks = start(training_config(data, work_dir, 2, **options), log, kills), '', []
            for _ in range(kills):
                last = wait_for_checkpoint(run, work_dir, last)
                time.sleep(choose.uniform(0, 0.3))
                ranks.append(choose.randrange(PROCESSES))
                os.kill(wait_for_rank(ranks[-1], work_dir), signal.SIGKILL)
            assert run.wait(600) == 0, log.read_text()
            named = [f'failed (exitcode: -9) local_rank: {rank}' for rank in ranks]
            assert [line.partition('] ')[2].partition(' (pid')[0] for line in log.read_text().splitlines()
                    if 'exitcode: -9' in line] == named  # fmt: skip
            weights.append(read_tensors(str(work_dir / f'iter_{iterations}.pth')))
    different = [name for name, value in weights[0].items() if not torch.equal(value, weights[1][name])]
    assert not different, different
    print(f'{times} processes of {PROCESSES} killed: each was named, and the weights are those without kills')


if __name__ == '__main__':
    main()
