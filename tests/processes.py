"""Run a function in several processes that communicate by gloo, as torchrun starts them."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# The server imports once what all functions need; processes are forked from it.
_CONTEXT = multiprocessing.get_context('forkserver')
_CONTEXT.set_forkserver_preload(['mmseg_segmenter.engine', 'mmseg.datasets', 'mmseg.engine', 'mmseg.evaluation'])


def free_port() -> int:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port: int = free.getsockname()[1]
    return port


def run_processes(function: Callable[..., Any], number: int, *args: Any, timeout: float = 300) -> list[Any]:
    """Return what a function returns in each process.

    Args:
        function: of a module; called with ``args``.
        number: of processes.
        args: that can be pickled.
        timeout: seconds.

    Raises:
        RuntimeError: a process failed; has its traceback.
    """
    port = free_port()
    pipes, processes = [], []
    for rank in range(number):
        receiver, sender = _CONTEXT.Pipe(duplex=False)
        process = _CONTEXT.Process(target=_call, args=(sender, rank, number, port, function, args), daemon=True)
        process.start()
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    results = []
    try:
        for rank, pipe in enumerate(pipes):
            if not pipe.poll(timeout):
                raise RuntimeError(f'process {rank} takes longer than {timeout} s')
            result, error = pipe.recv()
            if error:
                raise RuntimeError(f'process {rank}: {error}')
            results.append(result)
    finally:
        for process in processes:
            process.kill()
    return results


def _call(
    pipe: Connection, rank: int, number: int, port: int, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(number), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port)
    )
    try:
        pipe.send((function(*args), None))
    except BaseException:  # passed on to the test
        pipe.send((None, traceback.format_exc()))


def process_of_rank(rank: int, folder: Path) -> int:
    """Return the id of the process that torchrun started with a rank, and whose command line has a folder."""
    for path in Path('/proc').glob('[0-9]*'):
        try:
            environment, command = (path / 'environ').read_bytes(), (path / 'cmdline').read_bytes()
        except OSError:
            continue
        if f'\0RANK={rank}\0'.encode() in environment and str(folder).encode() in command:
            return int(path.name)
    raise LookupError(rank)
