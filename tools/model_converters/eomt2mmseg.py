#!/usr/bin/env python
"""Convert a checkpoint of EoMT to mmseg's layout: of the authors' code (tue-mps/eomt) or of transformers.

The authors release models on DINOv3 as deltas, to which --base adds the pretrained DINOv3.
"""

import argparse
import sys


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', help='checkpoint of EoMT; with --back one in mmseg\'s layout')  # fmt: skip
    parser.add_argument('destination', help='file to write')
    parser.add_argument(
        '--base',
        metavar='FILE',
        help='pretrained DINOv3 that the deltas are added to, in any layout, or its name, such as dinov3://vitl16',
    )
    parser.add_argument('--whole', action='store_true', help='the file holds whole weights of a DINOv3, not deltas')
    parser.add_argument('--back', action='store_true', help="write the layout of the authors' code, whole weights")
    parser.add_argument('--force', action='store_true', help='replace existing files')
    parser.add_argument('--verify', action='store_true', help='run both models on one image; write only if they agree')
    parser.add_argument(
        '--num-heads', type=int, help='attention heads (default: from a config.json beside the file, else width / 64)'
    )
    args = parser.parse_args()
    if args.back and (args.base or args.whole or args.verify or args.num_heads):
        parser.error('--back takes no option but --force')
    return args


def main() -> None:
    args = parse_args()

    from mmseg_segmenter.checkpoints.eomt import convert_eomt, write_official_eomt
    from mmseg_segmenter.command_line import errors_in_one_line

    with errors_in_one_line():
        if args.back:
            write_official_eomt(args.source, args.destination, args.force)
        else:
            checkpoint = convert_eomt(
                args.source, args.destination, args.base, args.whole, args.force, args.verify, args.num_heads
            )
            for warning in checkpoint.warnings:
                print(f'warning: {warning}', file=sys.stderr)
            print(checkpoint)
    print(f'wrote {args.destination}')


if __name__ == '__main__':
    main()
