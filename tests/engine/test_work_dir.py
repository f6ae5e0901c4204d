import json
import os
import threading
import time

import pytest
import torch

from mmseg_segmenter.engine import work_dir
from mmseg_segmenter.engine.work_dir import check_start, checkpoints_in, last_checkpoint, lock_work_dir, unlock_work_dir
from mmseg_segmenter.errors import UserError

pytestmark = pytest.mark.skipif(work_dir.fcntl is None, reason='Windows has no such locks')


def lock_elsewhere(folder):
    """Try to lock in another process; return its message, or '' if it got the lock."""
    read, write = os.pipe()
    if not (pid := os.fork()):
        try:
            lock_work_dir(str(folder))
        except UserError as error:
            os.write(write, str(error).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    with os.fdopen(read) as file:
        return file.read()


def test_lock(tmp_path):
    lock_work_dir(str(tmp_path / 'run'))
    lock_work_dir(str(tmp_path / 'run'))  # the same process
    assert f'is in use by process {os.getpid()} on {os.uname().nodename} since' in lock_elsewhere(tmp_path / 'run')
    assert not lock_elsewhere(tmp_path / 'other')
    unlock_work_dir(str(tmp_path / 'run'))
    assert not lock_elsewhere(tmp_path / 'run')


def test_lock_of_a_dead_process(tmp_path):
    assert not lock_elsewhere(tmp_path)  # ends without giving it up
    assert json.loads((tmp_path / '.lock').read_text())['pid'] != os.getpid()
    lock_work_dir(str(tmp_path))
    assert json.loads((tmp_path / '.lock').read_text())['pid'] == os.getpid()
    unlock_work_dir(str(tmp_path))


@pytest.mark.parametrize('running', [False, True])
def test_lock_of_another_machine(tmp_path, monkeypatch, running):
    """The machines share the folder, but not the locks: a lock counts while its file is touched."""
    monkeypatch.setattr(work_dir, 'BEAT', 0.2)
    path = tmp_path / '.lock'
    path.write_text(json.dumps(dict(pid=1, host='far', boot='away', since='2026-01-01 00:00:00')))
    stop = threading.Event()

    def touch():
        while not stop.wait(0.1):
            os.utime(path)

    thread = threading.Thread(target=touch)
    if running:
        thread.start()
        with pytest.raises(UserError, match='in use by process 1 on far since 2026-01-01 00:00:00'):
            lock_work_dir(str(tmp_path))
        stop.set()
        thread.join()
    else:
        lock_work_dir(str(tmp_path))
        unlock_work_dir(str(tmp_path))


def test_lock_file_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(work_dir, 'BEAT', 0.05)
    lock_work_dir(str(tmp_path))
    os.utime(tmp_path / '.lock', (0, 0))
    end = time.monotonic() + 5
    while os.stat(tmp_path / '.lock').st_mtime == 0 and time.monotonic() < end:
        time.sleep(0.01)
    assert os.stat(tmp_path / '.lock').st_mtime > 0
    unlock_work_dir(str(tmp_path))


def test_file_system_without_locks(tmp_path, monkeypatch):
    """The process ID decides."""

    def unsupported(*_):
        raise OSError(38, 'Function not implemented')

    monkeypatch.setattr(work_dir.fcntl, 'lockf', unsupported)
    lock_work_dir(str(tmp_path))
    assert f'in use by process {os.getpid()}' in lock_elsewhere(tmp_path)
    unlock_work_dir(str(tmp_path))
    assert not lock_elsewhere(tmp_path)
    lock_work_dir(str(tmp_path))  # of a process that has ended
    unlock_work_dir(str(tmp_path))


@pytest.fixture
def run(tmp_path):
    """Return a folder with three checkpoints, of which the last is noted."""
    for step in (900, 1000, 1100):
        torch.save(dict(step=step), tmp_path / f'iter_{step}.pth')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_1100.pth'))
    return tmp_path


def test_last_checkpoint(run):
    assert checkpoints_in(str(run)) == [f'{run}/iter_{step}.pth' for step in (1100, 1000, 900)]
    assert last_checkpoint(str(run)) == f'{run}/iter_1100.pth'
    (run / 'last_checkpoint').write_text(f'{run}/iter_1000.pth\n')  # iter_1100.pth was not noted
    assert last_checkpoint(str(run)) == f'{run}/iter_1000.pth'
    for note in ('', f'{run}/iter_5.pth'):
        (run / 'last_checkpoint').write_text(note)
        assert last_checkpoint(str(run)) == f'{run}/iter_1100.pth'
    (run / 'last_checkpoint').unlink()
    assert last_checkpoint(str(run)) == f'{run}/iter_1100.pth'


def test_last_checkpoint_after_a_copy(run, tmp_path_factory):
    """That of the copy counts, although the original is still there."""
    import shutil

    copy = tmp_path_factory.mktemp('copy') / 'run'
    shutil.copytree(run, copy)
    assert last_checkpoint(str(copy)) == f'{copy}/iter_1100.pth'


@pytest.mark.parametrize('damage', [lambda b: b'', lambda b: b[: len(b) // 2], lambda b: b.replace(b'step', b'stop')])
def test_damaged_checkpoints(run, capture_log, damage):
    for step, expected in ((1100, 1000), (1000, 900)):
        path = run / f'iter_{step}.pth'
        path.write_bytes(damage(path.read_bytes()))
        assert last_checkpoint(str(run)) == f'{run}/iter_{expected}.pth'
        assert any(f'{path} is damaged' in record.getMessage() for record in capture_log)
    (run / 'iter_900.pth').unlink()
    with pytest.raises(UserError, match=r'none of the checkpoints is whole \(iter_1100.pth, iter_1000.pth\)'):
        last_checkpoint(str(run))


def test_start(run, tmp_path_factory):
    empty = str(tmp_path_factory.mktemp('empty'))
    assert last_checkpoint(empty) is None
    check_start(empty, False, None)
    check_start(empty, 'auto', None)
    check_start(empty, True, 'weights.pth')
    with pytest.raises(UserError, match=r'--resume: .* has no checkpoint .*leave out --resume .*--auto-resume'):
        check_start(empty, True, None)
    check_start(str(run), True, None)
    check_start(str(run), 'auto', None)
    with pytest.raises(UserError, match=r'the last one is iter_1100\.pth.*--resume.*--work-dir'):
        check_start(str(run), False, None)
    with pytest.raises(UserError, match='--resume'):
        check_start(str(run), False, 'weights.pth')
