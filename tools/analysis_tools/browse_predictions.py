#!/usr/bin/env python
"""Draw images of a dataset with annotation, prediction and errors on one sheet."""

import argparse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint file')
    parser.add_argument(
        '--predictions',
        metavar='DIR',
        help='folder of label maps that tools/test.py --out wrote, instead of a checkpoint',
    )
    parser.add_argument('--out', required=True, metavar='SHEET.png', help='picture to write')
    parser.add_argument('--split', choices=['val', 'test'], default='val', help='default: val')
    parser.add_argument('--number', type=int, default=8, help='number of samples, chosen at random (default: 8)')
    parser.add_argument('--columns', type=int, default=1, help='number of samples in a row (default: 1)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the random choice (default: 0)')
    parser.add_argument('--side', type=int, default=256, help='longer side of a picture in pixels (default: 256)')
    parser.add_argument(
        '--cfg-options', nargs='+', action='extend', metavar='KEY=VALUE', help='override config entries'
    )
    args = parser.parse_args()
    if (args.checkpoint is None) == (args.predictions is None):
        parser.error('give either a checkpoint or --predictions DIR')
    return args


def main() -> None:
    args = parse_args()

    from mmseg_segmenter import engine
    from mmseg_segmenter.analysis import samples
    from mmseg_segmenter.command_line import errors_in_one_line

    with errors_in_one_line():
        cfg = engine.load_config(args.config, cfg_options=args.cfg_options)
        checkpoint = args.checkpoint and engine.find_checkpoint(args.checkpoint)
        samples.browse_predictions(
            cfg, args.out, checkpoint, args.predictions, args.split, args.number, args.columns, args.seed, args.side
        )
    print('wrote', args.out)


if __name__ == '__main__':
    main()
