#!/usr/bin/env python
"""Convert a run of the official Segmenter to mmseg's layout: weights and a config ready for tools/test.py."""

import argparse
import sys

from mmseg_segmenter.checkpoints.official_run import convert_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', help='folder of the run, or checkpoint.pth in it (variant.yml beside it)')
    parser.add_argument('destination', help='folder for model.pth and config.py')
    parser.add_argument('--force', action='store_true', help='replace existing files')
    parser.add_argument('--verify', action='store_true', help='run both models on one image; write only if they agree')
    args = parser.parse_args()
    try:
        run = convert_run(args.source, args.destination, args.force, args.verify)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f'{parser.prog}: {error}')
    for warning in run.warnings:
        print(f'warning: {warning}', file=sys.stderr)
    print(run)
    print(f'wrote {args.destination}/model.pth and {args.destination}/config.py')


if __name__ == '__main__':
    main()
