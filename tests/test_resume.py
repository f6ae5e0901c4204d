"""Interrupted runs continue exactly; the rest of the kills are in tests/faults/kill_resume.py."""

import errno
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import forked_training as training
import pytest
import torch

from mmseg_segmenter.engine import EXIT_CODE

SEED = dict(randomness__seed=1)
EMA = dict(custom_hooks=[dict(type='RecordHook', priority='VERY_HIGH'), dict(type='EMAHook', momentum=0.1)])

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='forks')


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    return training.make_config(tmp_path_factory.mktemp('resume'))


@pytest.fixture(scope='module')
def whole(config):
    """Return the work dir of a run that was not interrupted."""
    work_dir = config.parent / 'whole'
    assert training.train(config, work_dir, **SEED) == 0
    return work_dir


def stop(config, work_dir, after, number=signal.SIGKILL, **options):
    """Train until iteration ``after`` is recorded, send a signal to all processes of the run, return the exit code."""
    pid = training.start(config, work_dir, **options)
    record = work_dir / 'record_0.jsonl'
    for _ in range(6000):
        if record.exists() and any(row['iter'] >= after for row in training.records(work_dir)):
            break
        time.sleep(0.005)
    os.killpg(pid, number)
    return training.wait(pid)


def log(work_dir):
    path = work_dir.with_suffix('.log')
    return path.read_text() if path.exists() else ''


@pytest.mark.parametrize('workers', [(0, 2), (2, 0), (1, 2)], ids=str)
def test_killed_run_continues_exactly(config, whole, tmp_path, workers):
    """Also with another number of workers: dropout, augmentations, order, learning rate and weights."""
    first, second = (dict(train_dataloader__num_workers=n) for n in workers)
    assert stop(config, tmp_path / 'run', 10, **SEED, **first) == -signal.SIGKILL
    assert training.train(config, tmp_path / 'run', resume=True, **SEED, **second) == 0
    training.assert_same_training(tmp_path / 'run', whole)


def test_without_a_fixed_seed(config, tmp_path):
    """The order of images comes from the seed that the first start drew."""
    stop(config, tmp_path / 'run', 10)
    assert training.train(config, tmp_path / 'run', resume=True) == 0
    seed = torch.load(tmp_path / 'run' / 'iter_24.pth', weights_only=True)['meta']['seed']
    assert training.train(config, tmp_path / 'whole', randomness__seed=seed) == 0
    training.assert_same_training(tmp_path / 'run', tmp_path / 'whole')


@pytest.mark.parametrize('options', [EMA, dict(optim_wrapper__accumulative_counts=3)], ids=['ema', 'accumulation'])
def test_averages_and_pending_gradients(config, tmp_path, options):
    assert training.train(config, tmp_path / 'whole', **SEED, **options) == 0
    stop(config, tmp_path / 'run', 11, **SEED, **options)
    assert training.train(config, tmp_path / 'run', resume=True, **SEED, **options) == 0
    training.assert_same_training(tmp_path / 'run', tmp_path / 'whole')


def test_checkpoints_wait_for_the_update(config, tmp_path):
    options = dict(optim_wrapper__accumulative_counts=3, default_hooks__checkpoint__max_keep_ckpts=-1)
    assert training.train(config, tmp_path / 'run', train_cfg__max_iters=16, **SEED, **options) == 0
    # due at 4, 8, 12; the last update comes early
    assert {path.name for path in (tmp_path / 'run').glob('iter_*')} == {f'iter_{i}.pth' for i in (6, 9, 12, 16)}


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT], ids=lambda number: number.name)
def test_preemption(config, whole, tmp_path, number):
    """The process saves and ends with the documented code, no iteration is computed twice. Workers get it too."""
    code = stop(config, tmp_path / 'run', 9, number, **SEED, train_dataloader__num_workers=1)
    assert code == EXIT_CODE == 75
    assert f'Stopped by {number.name} after iteration' in log(tmp_path / 'run')
    done = [row['iter'] for row in training.records(tmp_path / 'run')]
    assert training.train(config, tmp_path / 'run', resume=True, **SEED) == 0
    rows = training.records(tmp_path / 'run')
    assert [row['iter'] for row in rows] == list(range(1, 25)) and len(done) < 24
    training.assert_same_training(tmp_path / 'run', whole)


def slow_validation():
    from mmengine.runner import ValLoop

    run_iter = ValLoop.run_iter

    def slow(self, idx, data_batch):
        print('validating', flush=True)
        time.sleep(0.5)
        return run_iter(self, idx, data_batch)

    ValLoop.run_iter = slow


def test_preemption_during_validation(config, tmp_path):
    """The weights of training are saved, not the averaged ones, and the validation is done after the resume."""
    assert training.train(config, tmp_path / 'whole', **SEED, **EMA) == 0
    pid = training.start(config, tmp_path / 'run', slow_validation, **SEED, **EMA)
    while 'validating' not in log(tmp_path / 'run'):
        time.sleep(0.01)
    os.kill(pid, signal.SIGTERM)
    assert training.wait(pid) == EXIT_CODE
    assert [path.name for path in (tmp_path / 'run').glob('*.pth')] == ['iter_6.pth']
    assert training.train(config, tmp_path / 'run', resume=True, **SEED, **EMA) == 0
    assert 'Validating first' in log(tmp_path / 'run')
    training.assert_same_training(tmp_path / 'run', tmp_path / 'whole')


@pytest.mark.parametrize(
    ('step', 'after'), [('fsync', False), ('replace', False), ('replace', True), ('remove', False)]
)
def test_killed_while_saving(config, whole, tmp_path, step, after):
    """With max_keep_ckpts=1 one whole checkpoint is there at any moment, and nothing is left over in the end."""
    sys.path.insert(0, str(Path(training.__file__).parent / 'faults'))
    from kill_resume import kill_in_step

    work_dir = tmp_path / 'run'
    # the second call while the second checkpoint is saved
    pid = training.start(config, work_dir, kill_in_step(step, after, {'remove': 1}.get(step, 6)), **SEED)
    assert training.wait(pid) == -signal.SIGKILL
    torch.load((work_dir / 'last_checkpoint').read_text(), weights_only=True)
    assert training.train(config, work_dir, resume=True, **SEED) == 0
    training.assert_same_training(work_dir, whole)
    assert len(list(work_dir.glob('iter_*'))) == 1 and not list(work_dir.glob('.*.part'))


def kill_before_the_old_best_is_deleted():
    remove = os.remove

    def counted(path, **kwargs):
        if os.path.basename(path).startswith('best_'):
            os.kill(os.getpid(), signal.SIGKILL)
        remove(path, **kwargs)

    os.remove = counted


def test_killed_before_the_old_best_is_deleted(config, tmp_path):
    """The checkpoint already says that another one is the best, so the run does not come back to this one."""
    work_dir, whole, seed = tmp_path / 'run', tmp_path / 'whole', dict(randomness__seed=2)  # with a second best
    assert training.train(config, whole, **seed) == 0
    pid = training.start(config, work_dir, kill_before_the_old_best_is_deleted, **seed)
    assert training.wait(pid) == -signal.SIGKILL
    assert len(list(work_dir.glob('best_*'))) == 2
    assert training.train(config, work_dir, resume=True, **seed) == 0
    training.assert_same_training(work_dir, whole)
    assert [path.name for path in work_dir.glob('best_*')] == [path.name for path in whole.glob('best_*')]


def test_nothing_is_left_of_what_was_not_renamed(config, whole, tmp_path):
    """Not even if the run was at its end, where nothing more is saved."""
    work_dir = tmp_path / 'run'
    shutil.copytree(whole, work_dir)
    for name in ('.last_checkpoint.part', '.iter_24.pth.part'):
        (work_dir / name).touch()
    assert training.train(config, work_dir, resume=True, **SEED) == 0
    assert not list(work_dir.glob('.*.part'))


@pytest.fixture
def stopped(config, tmp_path):
    """Return the work dir of a run that was stopped after iteration 13, with two checkpoints."""
    options = dict(default_hooks__checkpoint__max_keep_ckpts=2)
    assert stop(config, tmp_path / 'run', 13, **SEED, **options) == -signal.SIGKILL
    assert len(list((tmp_path / 'run').glob('iter_*.pth'))) >= 2
    return tmp_path / 'run'


def test_damaged_checkpoint(config, whole, stopped):
    last = Path((stopped / 'last_checkpoint').read_text())
    last.write_bytes(last.read_bytes()[:-1000])
    assert training.train(config, stopped, resume=True, **SEED) == 0
    assert f'{last} is damaged' in log(stopped) and 'trying the checkpoint before it' in log(stopped)
    training.assert_same_training(stopped, whole)


def test_all_checkpoints_damaged(config, stopped):
    for path in stopped.glob('iter_*.pth'):
        path.write_bytes(b'')
    assert training.train(config, stopped, resume=True, **SEED) == 1
    assert log(stopped).splitlines()[-1].startswith(f'train.py: {stopped}: none of the checkpoints is whole (iter_')


def test_moved_work_dir(config, whole, stopped, tmp_path):
    moved = stopped.rename(tmp_path / 'moved')
    assert training.train(config, moved, resume=True, **SEED) == 0
    training.assert_same_training(moved, whole)
    assert not stopped.exists()


def test_copied_work_dir(config, stopped, tmp_path):
    """The original keeps its best checkpoint."""
    import shutil

    shutil.copytree(stopped, tmp_path / 'copy')
    before = sorted(path.name for path in stopped.iterdir())
    assert training.train(config, tmp_path / 'copy', resume=True, **SEED) == 0
    assert sorted(path.name for path in stopped.iterdir()) == before
    assert len(list((tmp_path / 'copy').glob('best_*.pth'))) == 1


def full_disk():
    """Let the third checkpoint not fit."""
    from mmseg_segmenter import files

    fsync, calls = os.fsync, 0

    def full(descriptor):
        nonlocal calls
        calls += 1
        if os.readlink(f'/proc/self/fd/{descriptor}').endswith('.iter_12.pth.part'):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    files.os.fsync = full


@pytest.mark.skipif(not Path('/proc/self/fd').exists(), reason='Linux')
def test_full_disk(config, whole, tmp_path):
    work_dir = tmp_path / 'run'
    assert training.wait(training.start(config, work_dir, full_disk, **SEED)) == 1
    assert log(work_dir).splitlines()[-1] == (
        f'train.py: cannot write {work_dir}/iter_12.pth: No space left on device; {work_dir}/iter_8.pth is whole: '
        '--resume continues from it'
    )
    assert not list(work_dir.glob('.*.part'))
    assert training.train(config, work_dir, resume=True, **SEED) == 0
    training.assert_same_training(work_dir, whole)


def test_second_start_is_refused(config, tmp_path):
    pid = training.start(config, tmp_path / 'run', slow_validation, **SEED)
    while 'validating' not in log(tmp_path / 'run'):
        time.sleep(0.01)
    before = sorted((tmp_path / 'run').iterdir())
    second = training.start(config, tmp_path / 'run', log=tmp_path / 'second.log', **SEED)
    assert training.wait(second) == 1
    (line,) = (tmp_path / 'second.log').read_text().splitlines()
    assert line.startswith(f'train.py: {tmp_path}/run is in use by process {pid} on {os.uname().nodename} since 20')
    assert sorted((tmp_path / 'run').iterdir()) == before
    os.killpg(pid, signal.SIGKILL)
    training.wait(pid)
    assert training.train(config, tmp_path / 'run', resume=True, **SEED) == 0


def test_start_beside_another_run(config, stopped):
    assert training.train(config, stopped, **SEED) == 1
    line = log(stopped).splitlines()[-1]
    assert 'has checkpoints of an earlier run (the last one is iter_' in line and '--resume' in line


def test_nothing_to_resume(config, tmp_path):
    assert training.train(config, tmp_path / 'run', resume=True, **SEED) == 1
    assert '--resume: ' in log(tmp_path / 'run') and 'has no checkpoint to continue from' in log(tmp_path / 'run')
    assert [path.name for path in (tmp_path / 'run').iterdir()] == ['.lock']
    assert training.train(config, tmp_path / 'run', resume='auto', train_cfg__max_iters=2, **SEED) == 0


def test_checkpoint_of_mmengine(config, whole, tmp_path):
    """The order of images continues, with a warning."""
    theirs = dict(default_hooks__checkpoint__type='CheckpointHook')
    stop(config, tmp_path / 'run', 10, **SEED, **theirs)
    assert training.train(config, tmp_path / 'run', resume=True, **SEED) == 0
    assert 'was not saved by SegmenterCheckpointHook' in log(tmp_path / 'run')


def mmengine_alone():
    """Train as mmseg's own tools/train.py does."""
    from mmengine.runner import Runner

    training.engine.run = lambda cfg, _: Runner.from_cfg(cfg).train()


def test_without_our_tools(config, whole, tmp_path):
    """The hook alone does all of it."""
    work_dir = tmp_path / 'run'
    alone = dict(prepare=mmengine_alone, **SEED)
    assert training.train(config, work_dir, resume=True, **alone) == 1
    assert 'has no checkpoint to continue from' in log(work_dir).splitlines()[-1]
    assert stop(config, work_dir, 10, signal.SIGTERM, **alone) == EXIT_CODE
    assert training.train(config, work_dir, **alone) == 1
    assert 'has checkpoints of an earlier run' in log(work_dir).splitlines()[-1]
    assert training.train(config, work_dir, resume=True, **alone) == 0
    training.assert_same_training(work_dir, whole)


def start_two(config, work_dir, port, **options):
    """Start two processes as torchrun does, with different random numbers."""

    def as_rank(rank):
        def prepare():
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port)
            )

        return prepare

    options |= dict(randomness__diff_rank_seed=True, train_dataloader__batch_size=1)
    return [training.start(config, work_dir, as_rank(rank), **(SEED | options)) for rank in range(2)]


def test_preemption_of_one_of_two_processes(config, tmp_path):
    """Both stop after the same iteration, and continue each with its own random numbers."""
    assert [training.wait(pid) for pid in start_two(config, tmp_path / 'whole', 29671)] == [0, 0]
    pids = start_two(config, tmp_path / 'run', 29672)
    while not (tmp_path / 'run' / 'iter_8.pth').exists():
        time.sleep(0.01)
    os.kill(pids[1], signal.SIGTERM)
    assert [training.wait(pid) for pid in pids] == [EXIT_CODE] * 2
    assert [training.wait(pid) for pid in start_two(config, tmp_path / 'run', 29673, resume=True)] == [0, 0]
    training.assert_same_training(tmp_path / 'run', tmp_path / 'whole')
    assert training.records(tmp_path / 'run', 1) == training.records(tmp_path / 'whole', 1)
    states = torch.load(tmp_path / 'run' / 'iter_24.pth', weights_only=True)['exact_resume']['random_states']
    assert len(states) == 2 and not torch.equal(states[0]['torch'], states[1]['torch'])


def test_epoch_based_loop(config, tmp_path):
    """A stop within an epoch continues there."""
    options = dict(
        train_cfg=dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=4, val_interval=2),
        train_dataloader__sampler=dict(type='DefaultSampler', shuffle=True),
        default_hooks__checkpoint__by_epoch=True,
        default_hooks__checkpoint__interval=1,
        default_hooks__checkpoint__max_keep_ckpts=3,
    )
    assert training.train(config, tmp_path / 'whole', **SEED, **options) == 0
    assert stop(config, tmp_path / 'run', 7, signal.SIGTERM, **SEED, **options) == EXIT_CODE
    assert training.train(config, tmp_path / 'run', resume=True, **SEED, **options) == 0
    training.assert_same_training(tmp_path / 'run', tmp_path / 'whole', 'epoch_4.pth')
    assert [row['iter'] for row in training.records(tmp_path / 'run')] == list(
        range(1, len(training.records(tmp_path / 'whole')) + 1)
    )
