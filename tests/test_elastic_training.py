"""tools/dist_train.sh as users start it: several machines, and processes that die."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import free_port, process_of_rank
from tiny_training import training_config, write_dataset

ROOT = Path(__file__).parent.parent

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')]


def start(config: str, processes: int, **env: str) -> subprocess.Popen[str]:
    """Start tools/dist_train.sh on a free port."""
    environment = {
        **os.environ, 'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}', 'PORT': str(free_port()),
        'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', **env,
    }  # fmt: skip
    return subprocess.Popen(
        ['bash', str(ROOT / 'tools' / 'dist_train.sh'), config, str(processes)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Return the output of a process that ends with an exit code."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output


def signal_rank(number: signal.Signals, rank: int, work_dir: Path, checkpoint: int) -> None:
    """Send a signal to a process once a checkpoint is there."""
    deadline = time.monotonic() + 120
    while not (work_dir / f'iter_{checkpoint}.pth').exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process_of_rank(rank, work_dir), number)


def weights_of(work_dir: Path, iteration: int) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(work_dir / f'iter_{iteration}.pth', weights_only=True)['state_dict']
    return state


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], atol: float) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=atol, rtol=0)


@pytest.fixture
def make_config(tmp_path: Path):
    data = write_dataset(tmp_path / 'data')

    def make(name: str, batch_size: int, iterations: int = 100, **changes: Any) -> str:
        changes = {'train_cfg.max_iters': iterations, 'train_cfg.val_interval': iterations, **changes}
        return training_config(data, tmp_path / name, batch_size, **changes)

    return make


def test_two_machines(make_config, tmp_path: Path) -> None:
    """Two launchers with one process each, on this machine, equal one process with twice the batch size."""
    whole = start(make_config('whole', 2, 10, **{'default_hooks.checkpoint.interval': 10}), 1)
    finish(whole)
    path, port = make_config('two', 1, 10, **{'default_hooks.checkpoint.interval': 10}), str(free_port())
    machines = [start(path, 1, NNODES='2', NODE_RANK=str(rank), PORT=port) for rank in range(2)]
    for machine in machines:
        finish(machine)
    assert_equal(weights_of(tmp_path / 'two', 10), weights_of(tmp_path / 'whole', 10), atol=1e-6)


@pytest.mark.parametrize('machines', [1, 2])
def test_killed_rank_and_restart(machines: int, make_config, tmp_path: Path) -> None:
    """torchrun names the rank, starts all processes again, and they continue as if nothing had happened."""
    interval = {'default_hooks.checkpoint.interval': 20}
    finish(start(make_config('whole', 2, **interval), 2))
    path, port = make_config('killed', 2, **interval), str(free_port())
    env = dict(MAX_RESTARTS='1', NNODES=str(machines), PORT=port)
    launchers = [start(path, 2 // machines, NODE_RANK=str(rank), **env) for rank in range(machines)]
    signal_rank(signal.SIGKILL, 1, tmp_path / 'killed', 40)
    outputs = [finish(launcher) for launcher in launchers]
    assert sum('failed (exitcode: -9) local_rank: 1' in output for output in outputs) == 2 - machines
    assert sum('failed (exitcode: -9) local_rank: 0' in output for output in outputs) == machines - 1
    assert_equal(weights_of(tmp_path / 'killed', 100), weights_of(tmp_path / 'whole', 100), atol=0)


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGSTOP])
def test_the_rank_is_named(number: signal.Signals, make_config, tmp_path: Path) -> None:
    path = make_config('run', 2, 10000, **{'env_cfg.dist_cfg.timeout': 5, 'default_hooks.checkpoint.interval': 20})
    launcher = start(path, 2)
    signal_rank(number, 1, tmp_path / 'run', 20)
    started = time.monotonic()
    output = finish(launcher, code=1)
    assert time.monotonic() - started < 5 + 60  # torchrun waits 30 s for processes to end
    if number == signal.SIGKILL:
        assert 'rank      : 1 (local_rank: 1)\n  exitcode  : -9' in output.partition('Root Cause')[2]
    else:
        assert 'train.py: rank 1 (process ' in output and 'stopped running; start again with --resume' in output
