#!/usr/bin/env python
"""Convert a run of the official Segmenter to mmseg's layout: weights and a config ready for tools/test.py."""

import sys

from mmseg_segmenter.checkpoints.official_run import convert_run
from mmseg_segmenter.command_line import conversion_parser, errors_in_one_line


def main() -> None:
    args = conversion_parser(
        __doc__,
        source='folder of the run, or checkpoint.pth in it (variant.yml beside it)',
        destination='folder for model.pth and config.py',
    ).parse_args()
    with errors_in_one_line():
        run = convert_run(args.source, args.destination, args.force, args.verify)
    for warning in run.warnings:
        print(f'warning: {warning}', file=sys.stderr)
    print(run)
    print(f'wrote {args.destination}/model.pth and {args.destination}/config.py')


if __name__ == '__main__':
    main()
