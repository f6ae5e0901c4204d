#!/usr/bin/env python
"""Train and predict for long, and check that memory, open files and threads stay as they are.

A tiny model trains for 20,000 iterations, with two workers, a validation and pictures every 500 and a checkpoint every
250 iterations. Then predict.py segments 5,000 images. Each process is sampled once a second.
"""

import argparse
import os
import runpy
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import forked_training as training
import numpy as np

from mmseg_segmenter.visualization.plots import new_figure

OPTIONS = dict(
    randomness__seed=1,
    train_dataloader__num_workers=2,
    train_dataloader__persistent_workers=True,
    val_dataloader__num_workers=1,
    val_dataloader__persistent_workers=True,
    train_cfg__val_interval=500,
    default_hooks__checkpoint__interval=250,
    default_hooks__checkpoint__max_keep_ckpts=2,
    default_hooks__logger__interval=50,
    default_hooks__visualization__interval=1,
    custom_hooks=[],
)


class Sample(NamedTuple):
    """What a process has at a moment: memory in MB, open files, threads."""

    time: float
    memory: float
    files: int
    threads: int


def look(pid: int, since: float) -> Sample | None:
    """Return the sample of a process; ``None`` if it has ended."""
    try:
        status = dict(line.split(':', 1) for line in Path(f'/proc/{pid}/status').read_text().splitlines())
        memory = int(status['RssAnon'].split()[0]) / 1024
        files = len(os.listdir(f'/proc/{pid}/fd'))
        return Sample(time.monotonic() - since, memory, files, int(status['Threads']))
    except (OSError, KeyError):
        return None


def watch(pid: int) -> dict[str, list[Sample]]:
    """Sample a process and its workers, in the order in which they started, until it ends well."""
    since, names, samples = time.monotonic(), {pid: 'main process'}, defaultdict(list)
    while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        children = Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
        for child in map(int, children):
            names.setdefault(child, f'worker {len(names)}')
        for one in (pid, *map(int, children)):
            if (sample := look(one, since)) is not None:
                samples[names[one]].append(sample)
        time.sleep(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0, f'exit code {code}'
    # Without the workers that mmengine starts first, and SegmenterCheckpointHook ends.
    lasting = [rows for name, rows in samples.items() if name == 'main process' or len(rows) > 10]
    return {f'worker {i}' if i else 'main process': rows for i, rows in enumerate(lasting)}


def check(title: str, samples: dict[str, list[Sample]], steps: int, allowed: float) -> list[str]:
    """Compare the medians of the last fifth of the time and of the second one; the first has the start.

    Args:
        title: what ran.
        samples: of :func:`watch`.
        steps: number of iterations or images.
        allowed: growth of the memory per step, in kB.

    Returns:
        What grew.
    """
    grown = []
    for name, rows in samples.items():
        parts = np.array_split(np.array(rows), 5)
        early, late = (np.median(part, axis=0) for part in (parts[1], parts[4]))
        memory = (late[1] - early[1]) * 1024 / (0.6 * steps)
        print(
            f'{title}, {name}: {early[1]:.1f} to {late[1]:.1f} MB ({memory:+.2f} kB per step), {early[2]:.0f} and '
            f'{late[2]:.0f} open files, {early[3]:.0f} and {late[3]:.0f} threads',
            flush=True,
        )
        # Workers hand images over as open files, which come and go.
        if memory > allowed or late[2] > early[2] + 2 or late[3] > early[3]:
            grown.append(f'{title}, {name}')
    return grown


def plot(path: str, runs: dict[str, dict[str, list[Sample]]]) -> None:
    """Plot memory, open files and threads against time, one column per run."""
    figure = new_figure(9, 6)
    axes = figure.subplots(3, len(runs), squeeze=False, sharex='col')
    for column, (title, samples) in enumerate(runs.items()):
        axes[0][column].set_title(title, fontsize=10)
        for row, label in enumerate(('memory (MB)', 'open files', 'threads')):
            for name, values in samples.items():
                axes[row][column].plot([v.time / 60 for v in values], [v[row + 1] for v in values], label=name, lw=1)
            axes[row][column].set_ylabel(label)
            axes[row][column].set_ylim(0, 1.2 * max(v[row + 1] for values in samples.values() for v in values))
        axes[2][column].set_xlabel('minutes')
        axes[1][column].legend(fontsize=7)
    figure.savefig(path, dpi=80)


def predict(work_dir: Path, images: Path, out: Path) -> None:
    sys.argv = ['predict.py', str(work_dir), str(images), '--out', str(out), '--outputs', 'overlay,mask']
    runpy.run_path(str(training.ROOT / 'tools' / 'predict.py'), run_name='__main__')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--iterations', type=int, default=20000)
    parser.add_argument('--images', type=int, default=5000)
    parser.add_argument('--plot', help='PNG to write')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = training.make_config(folder, num_images=40)
        end = dict(param_scheduler=[dict(type='PolyLR', power=0.9, end=args.iterations + 1, by_epoch=False)])
        run = folder / 'run'
        pid = training.start(config, run, **OPTIONS, **end, train_cfg__max_iters=args.iterations)
        runs = {f'training, {args.iterations:,} iterations': watch(pid)}

        (folder / 'images').mkdir()
        sources = sorted((folder / 'data' / 'images' / 'training').glob('*.jpg'))
        for i in range(args.images):
            os.link(sources[i % len(sources)], folder / 'images' / f'{i:05}.jpg')
        for old in sorted(run.glob('*.pth'))[:-1]:  # a folder with one checkpoint
            old.unlink()
        pid = training.fork(lambda: predict(run, folder / 'images', folder / 'out'), folder / 'predict.log')
        runs[f'predict.py, {args.images:,} images'] = watch(pid)
        assert len(list((folder / 'out' / 'mask').rglob('*.png'))) == args.images
    if args.plot:
        plot(args.plot, runs)
    # mmengine keeps the history of every logged value, in arrays that it copies and enlarges in each iteration.
    (training_title, trained), (predict_title, predicted) = runs.items()
    grown = [
        *check(training_title, trained, args.iterations, allowed=1.0),
        *check(predict_title, predicted, args.images, allowed=1.0),
    ]
    if grown:
        sys.exit(f'soak.py: more at the end than before: {"; ".join(grown)}')


if __name__ == '__main__':
    main()
