"""predict.py --engine ray, on a cluster of two nodes on this machine."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked_tool import run_tool
from PIL import Image
from tiny_run import CLASSES, save_run, tiny_config, write_image

from mmseg_segmenter.apis import Predictor

ROOT = Path(__file__).parent.parent.parent
ENV = {
    'OMP_NUM_THREADS': '1',
    'CUDA_VISIBLE_DEVICES': '',
    'RAY_USAGE_STATS_ENABLED': '0',
    'RAY_memory_monitor_refresh_ms': '0',  # it kills workers on a machine whose memory is full
    'RAY_health_check_period_ms': '500',  # a lost node is noticed in seconds
    'RAY_health_check_initial_delay_ms': '500',
    'RAY_health_check_timeout_ms': '500',
    'RAY_health_check_failure_threshold': '3',
}
NODE = dict(num_cpus=1, object_store_memory=80 << 20)

pytestmark = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Return a cluster with one node of one CPU. Its processes import from the folder ``site`` too."""
    pytest.importorskip('ray.data')
    pytest.importorskip('pyarrow')
    for key, value in ENV.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(map(str, [ROOT, tmp_path / 'site', *filter(None, sys.path)])))
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=dict(NODE, include_dashboard=False))
    yield cluster
    cluster.shutdown()


def command(*args: object) -> list[str]:
    return [sys.executable, str(ROOT / 'tools' / 'predict.py'), *map(str, args), '--engine', 'ray', '--device', 'cpu']


def rows(out: Path) -> list[dict[str, Any]]:
    from pyarrow import parquet

    return parquet.read_table(out / 'manifest.parquet').to_pylist()


def workers() -> list[int]:
    """Return the processes that have a model."""
    found = []
    for path in Path('/proc').glob('[0-9]*'):
        try:
            if b'MapWorker' in (path / 'cmdline').read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.slow
def test_lost_node(cluster, tmp_path):
    """Every result is there once and right; a second start does nothing. Inputs and results are at URIs."""
    second = cluster.add_node(**NODE)
    run = save_run(tmp_path / 'run', tiny_config(model__backbone__num_layers=8))
    images, out = tmp_path / 'images', tmp_path / 'out'
    for i in range(40):
        write_image(images / f'{i:02}.png', (300, 400), i)
    call = command(run, f'file://{images}', '--out', f'file://{out}', '--outputs', 'labels',
                   '--address', cluster.address)  # fmt: skip
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: len(workers()) == 2 and len(list(out.glob('labels/*.png'))) > 5, process)
        count = len(list(out.glob('labels/*.png')))
        cluster.remove_node(second, allow_graceful=False)
        text, err = process.communicate()
    assert process.returncode == 0, err[-3000:]
    assert 5 < count < 40, 'the node was not lost in the middle'
    assert '40 of 40 inputs in' in text and 'Traceback' not in err
    predictor = Predictor(run, device='cpu')
    found = rows(out)
    assert [row['source'] for row in found] == [f'file://{images}/{i:02}.png' for i in range(40)]
    for i, row in enumerate(found):
        assert row['status'] == 'done' and row['files'] == [f'labels/{i:02}.png'] and len(row['pixels']) == len(CLASSES)
        labels = np.asarray(Image.open(out / 'labels' / f'{i:02}.png'))
        assert labels.shape == (300, 400) and row['pixels'] == np.bincount(labels.ravel(), minlength=5).tolist()
        if i % 8 == 0:
            assert np.array_equal(labels, predictor.predict(images / f'{i:02}.png').labels)
    before = {path: path.stat().st_mtime_ns for path in out.glob('labels/*')}
    assert len(before) == 40
    again = subprocess.run([*call, '--resume'], capture_output=True, text=True)
    assert again.returncode == 0 and '40 of 40 inputs are done already' in again.stdout, again.stderr[-3000:]
    assert {path: path.stat().st_mtime_ns for path in out.glob('labels/*')} == before
    assert rows(out) == found


KILLER = """
import os, signal
from mmseg_segmenter.apis.predictor import Predictor
read = Predictor.prepare
def prepare(self, source):
    if 'killer' in str(source):
        os.kill(os.getpid(), signal.SIGKILL)
    return read(self, source)
Predictor.prepare = prepare
"""


@pytest.mark.slow
def test_input_that_kills_its_worker(cluster, tmp_path, run_folder):
    """It is one that failed, and the others are done."""
    (tmp_path / 'site').mkdir()
    (tmp_path / 'site' / 'killer_of_workers.py').write_text(KILLER)
    images, out, config = tmp_path / 'images', tmp_path / 'out', tmp_path / 'config.py'
    for name in ('a', 'b', 'c', 'killer', 'x', 'y'):
        write_image(images / f'{name}.png')
    (images / 'text.png').write_text('text')
    text = (run_folder / 'config.py').read_text()
    config.write_text(text.replace("'mmseg_segmenter',", "'mmseg_segmenter', 'killer_of_workers',"))
    assert config.read_text() != text
    call = command(config, run_folder / 'model.pth', images, '--out', out, '--outputs', 'labels',
                   '--address', cluster.address)  # fmt: skip
    process = subprocess.run(call, capture_output=True, text=True)
    assert process.returncode == 1, process.stderr[-3000:]
    table = {row['name']: row for row in rows(out)}
    assert {name for name, row in table.items() if row['status'] == 'failed'} == {'killer', 'text'}
    assert 'the worker process died on this input twice' in table['killer']['error']
    assert sorted(path.name for path in out.glob('labels/*')) == ['a.png', 'b.png', 'c.png', 'x.png', 'y.png']


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--address', '127.0.0.1:1'], '--address 127.0.0.1:1: no Ray cluster answers'),
        (['--cpus-per-worker', '0'], '--cpus-per-worker 0; expected at least 1'),
        pytest.param(['--cpus-per-worker', '4096'], '4096; expected at most', marks=pytest.mark.slow),
        (['--launcher', 'pytorch'], 'expected no --launcher'),
        (['camera:0'], 'camera:0: expected --engine local'),
    ],
)
def test_wrong_arguments(tmp_path, run_folder, args, message):
    """One line, before anything is written."""
    pytest.importorskip('ray.data')
    pytest.importorskip('pyarrow')
    write_image(tmp_path / 'a.png')
    call = command(run_folder, *args, tmp_path / 'a.png', '--out', tmp_path / 'out')[1:]
    process = run_tool(*call, env={'PYTHONPATH': os.pathsep.join(map(str, [ROOT, *filter(None, sys.path)]))})
    assert process.returncode == 1 and message in process.stderr and 'Traceback' not in process.stderr
    assert not (tmp_path / 'out').exists()


def test_ray_is_missing(tmp_path, run_folder):
    """One line says what to install."""
    (tmp_path / 'ray').mkdir()
    (tmp_path / 'ray' / '__init__.py').write_text('raise ImportError("No module named \'ray\'")')
    write_image(tmp_path / 'a.png')
    call = command(run_folder, tmp_path / 'a.png', '--out', tmp_path / 'out')
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, [tmp_path, ROOT, *filter(None, sys.path)]))}
    process = subprocess.run(call, capture_output=True, text=True, env=env)
    assert process.returncode == 1 and not (tmp_path / 'out').exists()
    assert "pip install 'mmseg_segmenter[ray]'" in process.stderr and process.stderr.count('\n') == 1
