#!/usr/bin/env python
"""Convert an official run to mmseg's layout: weights, and a config ready for tools/test.py."""

import sys

from mmseg_segmenter.checkpoints.official_run import convert_official_run
from mmseg_segmenter.command_line import conversion_parser, errors_in_one_line


def main() -> None:
    parser = conversion_parser(
        __doc__,
        source='folder of the run, or checkpoint.pth in it (variant.yml beside it)',
        destination='folder for model.pth and config.py',
    )
    parser.add_argument(
        '--classes',
        nargs='+',
        metavar='NAME',
        help='classes of a dataset other than ADE20K, Cityscapes and Pascal Context: names, or a text file of them',
    )
    args = parser.parse_args()
    with errors_in_one_line():
        run = convert_official_run(args.source, args.destination, args.force, args.verify, args.classes)
    for warning in run.warnings:
        print(f'warning: {warning}', file=sys.stderr)
    print(run)
    print(f'wrote {args.destination}/model.pth and {args.destination}/config.py')


if __name__ == '__main__':
    main()
