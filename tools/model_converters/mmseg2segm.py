#!/usr/bin/env python
"""Convert a Segmenter checkpoint to the layout of the official code: checkpoint.pth and variant.yml."""

import argparse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of the model')
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument('destination', help='folder for checkpoint.pth and variant.yml')
    parser.add_argument('--force', action='store_true', help='replace existing files')
    parser.add_argument('--verify', action='store_true', help='run both models on one image; write only if they agree')
    return parser.parse_args()


def main() -> None:
    args = parse_args()

    from mmseg_segmenter.checkpoints.official_run import write_official_run
    from mmseg_segmenter.command_line import errors_in_one_line

    with errors_in_one_line():
        verified = write_official_run(args.config, args.checkpoint, args.destination, args.force, args.verify)
    if verified:
        print(f'verified: {verified}')
    print(f'wrote {args.destination}/checkpoint.pth and {args.destination}/variant.yml')


if __name__ == '__main__':
    main()
