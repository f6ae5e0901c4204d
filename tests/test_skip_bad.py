"""Bad samples are skipped, and all of them are listed, through workers, kills and processes."""

import os
import signal

import forked_training as training
import pytest
from test_resume import SEED, start_two, stop

OPTIONS = dict(
    SEED, skip_bad=True, train_cfg__val_interval=24,
    **{f'train_dataloader__dataset__pipeline__{i}__type': kind for i, kind in enumerate(('LoadImage', 'LoadLabelMap'))},
)  # fmt: skip
WORKERS = dict(train_dataloader__num_workers=2)

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='forks')


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """Return a config whose data has two bad files."""
    path = training.make_config(tmp_path_factory.mktemp('skip'))
    images, masks = (sorted((path.parent / 'data' / kind / 'training').iterdir()) for kind in ('images', 'annotations'))
    images[2].write_bytes(b'')
    masks[5].write_bytes(masks[5].read_bytes()[:60])
    return path


@pytest.fixture(scope='module')
def whole(config):
    assert training.train(config, config.parent / 'whole', **OPTIONS, **WORKERS) == 0
    return config.parent / 'whole'


def listed(work_dir):
    return (work_dir / 'bad_samples.txt').read_text().splitlines()


def test_workers(whole):
    image, mask = sorted(listed(whole), key=lambda line: 'annotations' in line)
    assert ' is empty (0 bytes); see ' in image and '/images/training/' in image
    assert ' is incomplete: ' in mask and '/annotations/training/' in mask
    assert '2 bad samples were skipped' in whole.with_suffix('.log').read_text()


def test_resume_after_a_kill(config, whole, tmp_path):
    """The same batches, and what was found before the kill is listed too."""
    run = tmp_path / 'run'
    assert stop(config, run, 10, **OPTIONS) == -signal.SIGKILL
    assert listed(run)  # written at once, not at the end
    with (run / 'bad_samples.txt').open('a') as file:
        file.write('only before the kill\n')
    assert training.train(config, run, resume=True, **OPTIONS, **WORKERS) == 0
    training.assert_same_training(run, whole)
    assert listed(run) == sorted([*listed(whole), 'only before the kill'])


def test_processes(config, whole, tmp_path):
    """Each process finds some; the list and the total are of both."""
    assert [training.wait(pid) for pid in start_two(config, tmp_path / 'run', 29681, **OPTIONS)] == [0, 0]
    assert listed(tmp_path / 'run') == listed(whole)
    assert '2 bad samples were skipped' in (tmp_path / 'run.log').read_text()
