"""Find out which of several processes is gone when communication fails."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from ..errors import UserError

# Seconds between two beats.
INTERVAL = 2.0


@contextmanager
def silent_processes_named() -> Iterator[None]:
    """Let an error of the communication between processes name those that do not run any more.

    While this is active, a thread of each process counts up in the store of the process group. A process that was
    killed or stopped, or whose machine is gone, does not; one that waits for another does. With one process, nothing
    is done. NCCL may end a process after a timeout without an exception; torchrun then reports that process.

    Raises:
        UserError: communication failed; names the silent ranks, or that there are none.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        yield
        return
    store: Any = dist.distributed_c10d._get_default_store()
    stop = threading.Event()
    thread = threading.Thread(target=_beat, args=(store.clone(), dist.get_rank(), stop), daemon=True)
    thread.start()
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and 'gloo' not in str(error):
            raise
        raise UserError(f'{_diagnosis(store, dist.get_world_size())} ({error})') from error
    finally:
        stop.set()
        thread.join()


def _beat(store: Any, rank: int, stop: threading.Event) -> None:
    count = 0
    try:
        while not stop.wait(INTERVAL if count else 0):
            count += 1
            store.set(_key(rank), f'{count} process {os.getpid()} on {socket.gethostname()}')
    except dist.DistError:
        pass  # The process that holds the store has ended.


def _key(rank: int) -> str:
    return f'mmseg_segmenter/heartbeat/{rank}'


def _diagnosis(store: Any, world_size: int) -> str:
    try:
        before = _beats(store, world_size)
        time.sleep(2.5 * INTERVAL)
        after = _beats(store, world_size)
    except dist.DistError:
        return 'the processes lost the connection to the machine of MASTER_ADDR'
    silent = [
        f'rank {rank} ({beat.partition(" ")[2] or "never started"})'
        for rank, beat in after.items()
        if beat == before[rank]
    ]
    if not silent:
        return 'communication between the processes failed although all of them run'
    return f'{", ".join(silent)} stopped running; start again with --resume'


def _beats(store: Any, world_size: int) -> dict[int, str]:
    keys = {rank: _key(rank) for rank in range(world_size)}
    return {rank: store.get(key).decode() if store.check([key]) else '' for rank, key in keys.items()}
