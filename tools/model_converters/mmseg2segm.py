#!/usr/bin/env python
"""Convert a Segmenter checkpoint to the layout of the official code: checkpoint.pth and variant.yml."""

import argparse
import sys

from mmseg_segmenter.checkpoints.segm_run import write_official_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of the model')
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument('destination', help='folder for checkpoint.pth and variant.yml')
    parser.add_argument('--force', action='store_true', help='replace existing files')
    args = parser.parse_args()
    try:
        write_official_run(args.config, args.checkpoint, args.destination, args.force)
    except (ValueError, OSError) as error:
        sys.exit(f'{parser.prog}: {error}')
    print(f'wrote {args.destination}/checkpoint.pth and {args.destination}/variant.yml')


if __name__ == '__main__':
    main()
