#!/usr/bin/env python
"""Start several trainings in one work dir at the same time, kill the one that runs, and start again."""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from mmseg_segmenter.engine import lock_work_dir
from mmseg_segmenter.errors import UserError


def race(work_dir: Path, racers: int) -> tuple[int, list[str]]:
    """Return the process that got the lock and still has it, and the messages of the others."""
    read, write = os.pipe()
    pids = []
    for _ in range(racers):
        if not (pid := os.fork()):
            try:
                lock_work_dir(str(work_dir))
                if os.fork() == 0:  # a worker of the loader, which outlives its parent for seconds
                    time.sleep(1)
                    os._exit(0)
            except UserError as error:
                os.write(write, f'{error}\n'.encode())
                os._exit(1)
            os.write(write, b'locked\n')
            signal.pause()
        pids.append(pid)
    os.close(write)
    with os.fdopen(read) as file:
        lines = [file.readline().strip() for _ in range(racers)]
    (winner,) = (pid for pid in pids if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
                 and not _ended(pid))  # fmt: skip
    return winner, [line for line in lines if line != 'locked']


def _ended(pid: int) -> bool:
    """Return whether a process ends within the time that a refused one takes."""
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.005)
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--times', type=int, default=100)
    args = parser.parse_args()
    choose, refused = random.Random(0), 0
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.times):
            racers = choose.randint(2, 5)
            winner, messages = race(Path(folder), racers)
            assert len(messages) == racers - 1
            # One that is quicker than the winner's note cannot name it.
            assert all('is in use by ' in message for message in messages), messages
            refused += len(messages)
            os.kill(winner, signal.SIGKILL)
            os.waitpid(winner, 0)
    print(f'{args.times} times one of several got the lock of a killed process; {refused} others were refused')


if __name__ == '__main__':
    main()
