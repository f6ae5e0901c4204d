#!/usr/bin/env python
"""Loss, learning rate and mIoU of one or several trainings, as a plot and as CSV."""

import argparse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('runs', nargs='+', metavar='RUN', help='work dirs, or scalars.json files')
    parser.add_argument('--out', required=True, metavar='NAME[.png]', help='writes NAME.png and NAME.csv')
    parser.add_argument('--keys', nargs='+', help='what to draw (default: loss lr mIoU)')
    parser.add_argument('--labels', nargs='+', help='names of the runs (default: their folders)')
    parser.add_argument(
        '--smooth', type=float, default=0.6, help='weight of the next point, below 1 (default: 0.6; 0: none)'
    )
    args = parser.parse_args()

    from mmseg_segmenter.analysis import logs
    from mmseg_segmenter.command_line import errors_in_one_line

    with errors_in_one_line():
        print(logs.analyze(args.runs, args.out, args.keys, args.labels, args.smooth))
    stem = args.out.removesuffix('.png')
    print(f'wrote {stem}.png {stem}.csv')


if __name__ == '__main__':
    main()
