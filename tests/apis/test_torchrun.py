"""tools/dist_predict.sh: several processes share the inputs, and one that dies loses nothing."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import process_of_rank
from tiny_run import save_run, tiny_config, write_image

from mmseg_segmenter.apis import Predictor
from mmseg_segmenter.apis.distributed import largest_first
from mmseg_segmenter.apis.inputs import Task

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')


def start(processes: int, *args: object, **env: str) -> subprocess.Popen:
    """Start tools/dist_predict.sh on a free port."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    return subprocess.Popen(
        ['bash', str(ROOT / 'tools' / 'dist_predict.sh'), str(processes), *map(str, args)],
        env={**os.environ, 'PATH': path, 'PORT': str(port), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def summary(out: Path) -> list[dict[str, str]]:
    with open(out / 'summary.csv', newline='') as file:
        return list(csv.DictReader(file))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for i in range(30):
        write_image(tmp_path / 'images' / f'{i:02}.png', (300, 400), i)
    return tmp_path / 'images'


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the folder of a model that takes a while."""
    return save_run(tmp_path / 'run', tiny_config(model__backbone__num_layers=8))


def kill_rank_1(process: subprocess.Popen, out: Path) -> None:
    deadline = time.monotonic() + 120
    while len(list(out.glob('labels/*.png'))) < 4 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process_of_rank(1, out), signal.SIGKILL)


def assert_right(run: Path, images: Path, out: Path) -> None:
    """Every result is there once, and is what one process computes."""
    rows = summary(out)
    assert [row['name'] for row in rows] == [f'{i:02}' for i in range(30)]
    assert all(row['status'] == 'done' for row in rows)
    assert sorted(path.name for path in (out / 'labels').iterdir()) == sorted(path.name for path in images.iterdir())
    predictor = Predictor(run, device='cpu')
    for path in sorted(images.iterdir())[::7]:
        assert np.array_equal(np.asarray(Image.open(out / 'labels' / path.name)), predictor.predict(path).labels)


@pytest.mark.slow
def test_killed_process(run, images, tmp_path):
    """The results of both ranks are kept; three ranks do the rest."""
    out = tmp_path / 'out'
    command = [run, run / 'model.pth', images, '--out', out, '--outputs', 'labels']
    process = start(2, *command)
    kill_rank_1(process, out)
    _, err = process.communicate()
    assert process.returncode != 0
    first = {path: path.stat().st_mtime_ns for path in out.glob('labels/*')}
    assert 0 < len(first) < 30 and all(np.asarray(Image.open(path)).shape == (300, 400) for path in first)
    assert 'The same command with --resume continues' in err
    process = start(3, *command, '--resume')
    text, err = process.communicate()
    assert process.returncode == 0, err[-2000:]
    done = int(text.split(' of 30 inputs are done already')[0].rpartition('\n')[2])
    assert len(first) - 2 <= done <= len(first)  # what rank 1 wrote in its last moments is not in its journal
    shares = [int(line.split(' of ')[1].split()[0]) for line in text.splitlines() if line.startswith('rank ')]
    assert sum(shares) == 30 - done and max(shares) - min(shares) <= 1
    assert sum(path.stat().st_mtime_ns == written for path, written in first.items()) == done
    assert_right(run, images, out)


@pytest.mark.slow
def test_restart(run, images, tmp_path):
    """torchrun starts the processes again, which then do what is left."""
    out = tmp_path / 'out'
    process = start(2, run, run / 'model.pth', images, '--out', out, '--outputs', 'labels', MAX_RESTARTS='1')
    kill_rank_1(process, out)
    text, err = process.communicate()
    assert process.returncode == 0, err[-2000:]
    assert ' of 30 inputs are done already' in text
    assert_right(run, images, out)


def test_bad_file(run_folder, tmp_path):
    """It stops no rank; the exit code tells, and rank 0 names it."""
    for i in range(5):
        write_image(tmp_path / 'images' / f'{i}.png', seed=i)
    (tmp_path / 'images' / '5.png').write_text('text')
    out = tmp_path / 'out'
    process = start(2, run_folder, run_folder / 'model.pth', tmp_path / 'images', '--out', out, '--outputs', 'labels')
    text, err = process.communicate()
    assert process.returncode != 0
    assert '1 of 6 inputs failed' in err and 'with a table in summary.csv' in text
    assert [row['status'] for row in summary(out)] == ['done'] * 5 + ['failed']


def test_shares_of_large_inputs(tmp_path):
    """Each rank gets one of the two large files."""
    tasks = []
    for i, size in enumerate([10, 9000, 10, 9001, 10]):
        (tmp_path / f'{i}.png').write_bytes(bytes(size))
        tasks.append(Task(str(tmp_path / f'{i}.png'), str(i)))
    tasks += [Task('s3://bucket/a.png', 'a'), Task(str(tmp_path / 'missing.png'), 'missing')]
    found = [task.name for task in largest_first(tasks)]
    assert found == ['3', '1', '0', '2', '4', 'a', 'missing']
