#!/usr/bin/env python
"""Damage the last checkpoint of a run, and look which one a resume takes.

It must be the damaged one only if its content is still that of the original, and otherwise the one before it.
"""

import argparse
import logging
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import forked_training as training
import torch
from mmengine.logging import MMLogger

from mmseg_segmenter.engine import last_checkpoint


def damage(content: bytes, choose: random.Random) -> tuple[str, bytes]:
    """Return the kind of damage, and the damaged content."""
    start = choose.randrange(len(content))
    end = min(len(content), start + choose.choice([1, 16, 4096]))
    flipped = bytes([content[start] ^ 1 << choose.randrange(8)])
    noise = choose.randbytes(end - start)
    return choose.choice(
        [
            ('cut off', content[:start]),
            (
                'a bit flipped',
                content[:start] + flipped + content[start + 1 :],
            ),
            ('zeros', content[:start] + bytes(end - start) + content[end:]),
            ('noise', content[:start] + noise + content[end:]),
            ('a part missing', content[:start] + content[end:]),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--times', type=int, default=500)
    args = parser.parse_args()
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    choose, counts = random.Random(0), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        config, run = training.make_config(Path(name)), Path(name) / 'run'
        assert training.train(config, run, default_hooks__checkpoint__max_keep_ckpts=2) == 0
        last, before = run / 'iter_24.pth', run / 'iter_20.pth'
        content, original = last.read_bytes(), torch.load(last, weights_only=True)
        for _ in range(args.times):
            kind, damaged = damage(content, choose)
            last.write_bytes(damaged)
            found = last_checkpoint(str(run))
            assert found in (str(last), str(before)), found
            if found == str(last):  # the damage is in what pads the file, or changed nothing
                loaded = torch.load(last, weights_only=True)
                for key in ('state_dict', 'optimizer', 'exact_resume'):
                    training.assert_equal(loaded[key], original[key], key)
            counts[f'{kind}: {"harmless" if found == str(last) else "found"}'] += 1
    print(f'{args.times} damages: {dict(sorted(counts.items()))}')


if __name__ == '__main__':
    main()
