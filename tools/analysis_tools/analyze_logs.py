#!/usr/bin/env python
"""Plot loss, learning rate and mIoU of one or several trainings, and write them as CSV."""

import argparse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('runs', nargs='+', metavar='RUN', help='work dirs, or scalars.json files')
    parser.add_argument('--out', required=True, metavar='NAME[.png]', help='writes NAME.png and NAME.csv')
    parser.add_argument('--keys', nargs='+', help='logged values to plot (default: loss lr mIoU)')
    parser.add_argument('--labels', nargs='+', help='names of the runs (default: the names of their folders)')
    parser.add_argument('--smooth', type=float, default=0.6, help='smoothing from 0 (none) to below 1 (default: 0.6)')
    args = parser.parse_args()

    from mmseg_segmenter.analysis import logs
    from mmseg_segmenter.command_line import errors_in_one_line

    with errors_in_one_line():
        print(logs.analyze(args.runs, args.out, args.keys, args.labels, args.smooth))
    stem = args.out.removesuffix('.png')
    print(f'wrote {stem}.png {stem}.csv')


if __name__ == '__main__':
    main()
