#!/usr/bin/env python
"""Fill the disk while checkpoints are saved, make room, resume, and compare with an uninterrupted training.

Needs the right to mount a file system in memory.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import forked_training as training

SEED = dict(randomness__seed=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--times', type=int, default=20)
    args = parser.parse_args()
    choose, counts = random.Random(0), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        folder, disk = Path(name), Path(name) / 'disk'
        config = training.make_config(folder)
        assert training.train(config, folder / 'whole', **SEED) == 0
        size = (folder / 'whole' / 'iter_24.pth').stat().st_size // 1024  # kB
        disk.mkdir()
        mount = ['mount', '-t', 'tmpfs', 'tmpfs', str(disk), '-o']
        try:
            subprocess.run([*mount, f'size={size}k'], check=True)
        except (OSError, subprocess.CalledProcessError):
            sys.exit('full_disk.py: may not mount a file system here; run it as root')
        try:
            for _ in range(args.times):
                # Between nothing and all that is there at once: two checkpoints and two best ones, half as large.
                room = choose.randint(0, 3 * size)
                subprocess.run([*mount[:-1], '-o', f'remount,size={max(room, 4)}k'], check=True)
                work_dir, log = folder / 'run', folder / 'run.log'
                options = dict(**SEED, default_hooks__checkpoint__out_dir=str(disk))
                code = training.train(config, work_dir, **options)
                last = log.read_text().splitlines()[-1]
                if code:
                    assert code == 1 and 'No space left on device' in last and last.startswith('train.py: '), last
                    kept = (work_dir / 'last_checkpoint').exists()
                    assert kept == ('is whole: --resume continues from it' in last), last
                counts['stopped with one line' if code else 'had enough room'] += 1
                assert not list(disk.rglob('.*.part'))
                subprocess.run([*mount[:-1], '-o', f'remount,size={10 * size}k'], check=True)
                assert training.train(config, work_dir, resume='auto', **options) == 0, log.read_text()[-3000:]
                shutil.copy(disk / 'run' / 'iter_24.pth', work_dir)
                training.assert_same_training(work_dir, folder / 'whole')
                for path in (work_dir, disk / 'run'):
                    shutil.rmtree(path)
                log.unlink()
        finally:
            subprocess.run(['umount', str(disk)], check=True)
    print(f'{dict(counts)}; all equal to the uninterrupted training after a resume')


if __name__ == '__main__':
    main()
