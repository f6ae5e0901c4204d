"""Guard the folder of a run: one process at a time, no other run's checkpoints, and the last whole checkpoint."""

import atexit
import contextlib
import errno
import json
import logging
import os
import re
import socket
import threading
import time
from typing import IO, Any, NamedTuple

from mmengine.logging import print_log

from ..checkpoints.integrity import DamagedError, check_file
from ..errors import UserError

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

LOCK, LAST = '.lock', 'last_checkpoint'
# The owner of a lock touches its file this often, in seconds.
BEAT = 5.0


class _Lock(NamedTuple):
    """A lock that this process holds: its file, and the thread that touches it until it is told to stop."""

    file: IO[str]
    stop: threading.Event
    thread: threading.Thread


_held: dict[tuple[int, str], _Lock] = {}  # by process and path


class Owner(NamedTuple):
    """The process that has a lock.

    Attributes:
        pid: process ID.
        host: name of its machine.
        boot: what tells two machines of one name, or two boots of one machine, apart.
        since: when it took the lock.
    """

    pid: int
    host: str
    boot: str
    since: str


def lock_work_dir(work_dir: str) -> None:
    """Let no other process train in a folder, until :func:`unlock_work_dir` or the end of this process.

    The system drops the lock of a process that dies. Where machines share folders but not locks, a lock counts as
    long as its owner touches the file; to find this out takes 15 seconds.

    Args:
        work_dir: made if needed.

    Raises:
        UserError: another process trains there; names it and its host.
    """
    key = os.getpid(), os.path.join(os.path.realpath(work_dir), LOCK)
    if key in _held or fcntl is None:
        return
    path = key[1]
    os.makedirs(work_dir, exist_ok=True)
    owner, me = _read_owner(path), _myself()
    # Before the lock is taken: closing any descriptor of the file gives up the lock.
    if owner is not None and owner.boot != me.boot and _is_touched(path, owner):
        raise _in_use(work_dir, owner)
    # Opened files and flock() are shared with forked workers, which may outlive their parent. These locks are not.
    file = open(path, 'a+')  # noqa: SIM115  held as long as the process
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        refused = error.errno in (errno.EACCES, errno.EAGAIN)
        owner = _read_owner(path)
        # Some file systems have no locks. The process ID is the next best.
        if refused or (owner is not None and owner.boot == me.boot and _is_alive(owner.pid)):
            file.close()
            raise _in_use(work_dir, owner) from None
    file.truncate(0)
    file.write(json.dumps(me._asdict()))
    file.flush()
    stop = threading.Event()
    thread = threading.Thread(target=_touch, args=(file, stop), name='lock of the work dir', daemon=True)
    _held[key] = _Lock(file, stop, thread)
    thread.start()
    atexit.register(unlock_work_dir, work_dir)


def unlock_work_dir(work_dir: str) -> None:
    """Give up the lock of a folder, if this process has it.

    The file stays, empty: if it was deleted, a third process could lock a new one while a second waits for the old.
    """
    lock = _held.pop((os.getpid(), os.path.join(os.path.realpath(work_dir), LOCK)), None)
    if lock is None:
        return
    lock.stop.set()
    lock.thread.join()
    with contextlib.suppress(OSError):
        lock.file.truncate(0)
        lock.file.close()


def _myself() -> Owner:
    boot = ''
    with contextlib.suppress(OSError), open('/proc/sys/kernel/random/boot_id') as file:
        boot = file.read().strip()
    host = socket.gethostname()
    return Owner(os.getpid(), host, boot or host, time.strftime('%Y-%m-%d %H:%M:%S'))


def _in_use(work_dir: str, owner: Owner | None) -> UserError:
    by = f'process {owner.pid} on {owner.host} since {owner.since}' if owner else 'another process'
    return UserError(f'{work_dir} is in use by {by}; wait for it, end it, or choose another folder with --work-dir')


def _read_owner(path: str) -> Owner | None:
    try:
        with open(path) as file:
            return Owner(**json.load(file))
    except (OSError, ValueError, TypeError):  # absent, empty after a clean end, or half written
        return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it belongs to another user
    return True


def _is_touched(path: str, owner: Owner) -> bool:
    """Return whether the owner of a lock on another machine is still there."""
    print_log(f'{path} is of process {owner.pid} on {owner.host}; waiting to see whether it still runs', 'current')
    first = None
    end = time.monotonic() + 3 * BEAT
    while time.monotonic() < end:
        try:
            with open(path) as file:  # opening makes NFS look at the server
                modified = os.fstat(file.fileno()).st_mtime_ns
        except OSError:
            return False
        if first is not None and modified != first:
            return True
        first = modified
        time.sleep(BEAT / 10)
    return False


def _touch(file: IO[str], stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(file.fileno())


def checkpoints_in(folder: str, template: str = 'iter_{}.pth') -> list[str]:
    """Return the paths of the checkpoints in a folder, the last one first.

    Args:
        folder: it need not exist.
        template: of their names.
    """
    pattern = re.compile(r'(\d+)'.join(re.escape(part) for part in template.split('{}', 1)))
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    found = [(int(match[1]), name) for name in names if (match := pattern.fullmatch(name))]
    return [os.path.join(folder, name) for _, name in sorted(found, reverse=True)]


def last_checkpoint(work_dir: str, out_dir: str | None = None, template: str = 'iter_{}.pth') -> str | None:
    """Return the path of the last whole checkpoint of a run.

    That is the one that ``last_checkpoint`` names or, if it is damaged or missing, the one before it. Damaged ones are
    warned about. A work dir may have been moved since.

    Args:
        work_dir: holds ``last_checkpoint``.
        out_dir: holds the checkpoints; default: ``work_dir``.
        template: of their names.

    Returns:
        The path; ``None`` if there is no checkpoint.

    Raises:
        UserError: there are checkpoints, but none is whole.
    """
    folder = out_dir or work_dir
    candidates = _candidates(work_dir, folder, template)
    for path in candidates:
        try:
            if not os.path.isdir(path):  # checkpoints of sharded models are folders
                check_file(path)
            return path
        except (DamagedError, OSError) as error:
            print_log(f'{path} is damaged ({error}); trying the checkpoint before it', 'current', logging.WARNING)
    if candidates:
        raise UserError(f'{folder}: none of the checkpoints is whole ({", ".join(map(os.path.basename, candidates))})')
    return None


def _candidates(work_dir: str, folder: str, template: str) -> list[str]:
    """Return the checkpoints that may be the last whole one of a run, in the order in which to try them."""
    paths = checkpoints_in(folder, template)
    named = _named_last(work_dir, folder)
    if named is None:
        return paths
    # Any after it are of a run that went back, or were not noted yet.
    first = paths.index(named) if named in paths else 0
    return [named, *(path for path in paths[first:] if path != named)]


def _named_last(work_dir: str, folder: str) -> str | None:
    """Return the checkpoint that ``last_checkpoint`` names, also if work dir and checkpoints were moved."""
    try:
        with open(os.path.join(work_dir, LAST)) as file:
            path = file.read().strip()
    except OSError:
        return None
    if not path:
        return None
    here = os.path.join(folder, os.path.basename(path))
    return here if os.path.exists(here) or not os.path.exists(path) else path


def check_start(
    work_dir: str, resume: Any, load_from: str | None, out_dir: str | None = None, template: str = 'iter_{}.pth'
) -> None:
    """Find out whether a run may start in a folder. Checkpoints are not opened.

    Args:
        work_dir: of the run.
        resume: whether to continue. ``'auto'``: if there is a checkpoint to continue from.
        load_from: checkpoint to continue from, or to take the weights of.
        out_dir: as in :func:`last_checkpoint`.
        template: as in :func:`last_checkpoint`.

    Raises:
        UserError: there is nothing to continue, or an earlier run is there and was not to be continued.
    """
    folder = out_dir or work_dir
    earlier = _candidates(work_dir, folder, template)
    if not resume and earlier:
        raise UserError(
            f'{folder} has checkpoints of an earlier run (the last one is {os.path.basename(earlier[0])}); continue it '
            'with --resume, choose another folder with --work-dir, or delete it'
        )
    if resume and resume != 'auto' and not load_from and not earlier:
        raise UserError(
            f'--resume: {folder} has no checkpoint to continue from; leave out --resume to start at iteration 0, use '
            '--auto-resume to continue only if there is a checkpoint, or set load_from to the path of one'
        )
