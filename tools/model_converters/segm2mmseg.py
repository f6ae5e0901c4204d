#!/usr/bin/env python
"""Convert an official run to mmseg's layout: weights, and a config ready for tools/test.py."""

import argparse
import sys


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', help='folder of the run, or checkpoint.pth in it (variant.yml beside it)')
    parser.add_argument('destination', help='folder for model.pth and config.py')
    parser.add_argument('--force', action='store_true', help='replace existing files')
    parser.add_argument('--verify', action='store_true', help='run both models on one image; write only if they agree')
    parser.add_argument(
        '--classes', nargs='+', metavar='NAME',
        help='classes of a dataset other than ADE20K, Cityscapes and Pascal Context: names, or a text file of them',
    )  # fmt: skip
    return parser.parse_args()


def main() -> None:
    args = parse_args()

    from mmseg_segmenter.checkpoints.official_run import convert_official_run
    from mmseg_segmenter.command_line import errors_in_one_line

    with errors_in_one_line():
        run = convert_official_run(args.source, args.destination, args.force, args.verify, args.classes)
    for warning in run.warnings:
        print(f'warning: {warning}', file=sys.stderr)
    print(run)
    print(f'wrote {args.destination}/model.pth and {args.destination}/config.py')


if __name__ == '__main__':
    main()
