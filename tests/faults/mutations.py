#!/usr/bin/env python
"""Damage checkpoints and images at random, and give them to the converters, predict.py and check_dataset.py.

A damaged checkpoint must give the tensors of the whole one or an error of one line, and nothing may be written after
an error. Formats without checksums cannot tell a changed value from another one: there the names and shapes of the
tensors must be right. A damaged image must be segmented, or fail alone in one line. Nothing may crash, hang, or take
more memory than LIMIT. The cases run in child processes.
"""

import argparse
import io
import logging
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from damage import mutate
from encoder_files import convert_damaged, make_sources
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmseg.utils import register_all_modules
from PIL import Image
from tiny_run import CLASSES, dataset_config, save_run, tiny_config, write_image

from mmseg_segmenter.apis import Predictor
from mmseg_segmenter.apis.inputs import find_tasks
from mmseg_segmenter.apis.outputs import OutputSpec
from mmseg_segmenter.apis.pipeline import Pipeline
from mmseg_segmenter.datasets.check import check_dataset

BATCH = 100  # cases of one process
SECONDS = 60  # in which a case must end
LIMIT = 4 << 30  # bytes that a case may take on top of what the program has
IMAGES = {'a.jpg': 'JPEG', 'a.png': 'PNG', 'a.bmp': 'BMP', 'a.tif': 'TIFF', 'a.webp': 'WEBP', 'a.gif': 'GIF'}


def run_cases(cases: Sequence[Callable[[], str]]) -> Iterator[str]:
    """Yield the outcome of each case. They run in child processes; one that crashes or hangs is a bug."""
    done = 0
    while done < len(cases):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT, used + LIMIT))
            for case in cases[done : done + BATCH]:
                try:
                    outcome = case()
                except BaseException:
                    outcome = f'bug: {traceback.format_exc()}'
                os.write(write, outcome.encode()[:4000] + b'\0')
            os._exit(0)
        os.close(write)
        buffer, end = b'', min(done + BATCH, len(cases))
        while True:
            hangs = not select.select([read], [], [], SECONDS)[0]
            data = b'' if hangs else os.read(read, 1 << 16)
            if not data:
                break
            *outcomes, buffer = (buffer + data).split(b'\0')
            done += len(outcomes)
            yield from (outcome.decode(errors='replace') for outcome in outcomes)
        os.close(read)
        if hangs:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if done < end:
            yield 'bug: it hangs' if hangs else f'bug: the process ended with status {status}'
            done += 1


def damage_checkpoints(times: int, root: Path, choose: random.Random) -> bool:
    """Damage each format so many times; return whether all went well."""
    good = True
    for name, source in make_sources().items():
        (root / 'whole').mkdir()
        for file, content in source.files.items():
            (root / 'whole' / file).write_bytes(content)
        whole = source.convert(root / 'whole', root / 'out')
        shutil.rmtree(root / 'whole')
        shutil.rmtree(root / 'out')
        files = [choose.choice(list(source.files)) for _ in range(times)]
        damaged = [mutate(source.files[file], choose) for file in files]
        cases = [
            partial(convert_damaged, source, file, content, root / 'damaged', whole)
            for file, (_, content) in zip(files, damaged, strict=True)
        ]
        names = [f'{name}, {file} ({kind})' for file, (kind, _) in zip(files, damaged, strict=True)]
        good &= report(name, names, run_cases(cases), [content for _, content in damaged])
    return good


def segment(pipeline: Pipeline, path: Path, damaged: bytes) -> str:
    """Segment a damaged image."""
    path.write_bytes(damaged)
    (result,) = pipeline.run(find_tasks([str(path)]))
    if result.status == 'done':
        return 'segmented'
    assert str(path) in result.error or 'out of memory' in result.error, result.error
    assert '\n' not in result.error, result.error
    return 'an error'


def check(cfg: Config, root: Path, image: bytes, labels: bytes) -> str:
    """Check a dataset with a damaged file."""
    (root / 'images/a.png').write_bytes(image)
    (root / 'labels/a.png').write_bytes(labels)
    found = check_dataset(cfg, workers=1, progress=False)
    return 'problems found' if found.problems else 'no problem found'


def damage_images(times: int, root: Path, choose: random.Random) -> bool:
    """Damage images and label maps so many times; return whether all went well."""
    pipeline = Pipeline(Predictor(save_run(root / 'run', tiny_config()), device='cpu'), OutputSpec(str(root / 'out')))
    image = Image.open(write_image(root / 'whole.png'))
    labels = Image.fromarray(np.random.default_rng(0).integers(0, len(CLASSES), image.size[::-1], np.uint8))
    names = [choose.choice(list(IMAGES)) for _ in range(times)]
    damaged = [mutate(encode(image, IMAGES[name]), choose) for name in names]
    texts = [f'{name} ({kind})' for name, (kind, _) in zip(names, damaged, strict=True)]
    images = [content for _, content in damaged]
    cases = [partial(segment, pipeline, root / name, content) for name, content in zip(names, images, strict=True)]
    good = report('images, predict.py', texts, run_cases(cases), images)

    for folder in ('images', 'labels'):
        (root / 'data' / folder).mkdir(parents=True)
    cfg, whole = dataset_config(root / 'data'), encode(labels, 'PNG')
    cases = [partial(check, cfg, root / 'data', content, whole) for content in images]
    good &= report('images, check_dataset.py', texts, run_cases(cases), images)
    maps = [mutate(whole, choose)[1] for _ in range(times)]
    cases = [partial(check, cfg, root / 'data', encode(image, 'PNG'), content) for content in maps]
    return good & report('label maps, check_dataset.py', ['label map'] * times, run_cases(cases), maps)


def encode(image: Image.Image, format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


def report(title: str, names: Sequence[str], outcomes: Iterator[str], contents: Sequence[bytes]) -> bool:
    """Print how often each outcome came, and every bug; keep the files of bugs. Return whether there is none."""
    count = Counter[str]()
    for name, outcome, content in zip(names, outcomes, contents, strict=True):
        count[outcome.partition(':')[0]] += 1
        if outcome.startswith('bug'):
            path = Path(tempfile.gettempdir()) / f'mutation-{zlib.crc32(content):08x}'
            path.write_bytes(content)
            print(f'{name}: {outcome}\nthe file is kept as {path}', flush=True)
    print(f'{title}: {", ".join(f"{number} times {outcome}" for outcome, number in count.most_common())}', flush=True)
    return 'bug' not in count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--times', type=int, default=1000, help='for each format, and for images (default: 1000)')
    parser.add_argument('--only', choices=('checkpoints', 'images'), help='default: both')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    torch.set_num_threads(1)
    register_all_modules()
    choose = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        good = args.only == 'images' or damage_checkpoints(args.times, Path(name), choose)
        good &= args.only == 'checkpoints' or damage_images(args.times, Path(name), choose)
    sys.exit(not good)


if __name__ == '__main__':
    main()
