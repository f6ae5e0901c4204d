#!/usr/bin/env python
"""Draw samples of a dataset as the model gets them, augmented and padded, with their annotation, on one sheet."""

import argparse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--out', required=True, metavar='SHEET.png', help='picture to write')
    parser.add_argument('--split', choices=['train', 'val', 'test'], default='train', help='default: train')
    parser.add_argument('--number', type=int, default=12, help='number of samples, chosen at random (default: 12)')
    parser.add_argument('--columns', type=int, default=3, help='number of samples in a row (default: 3)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the choice and the augmentation (default: 0)')
    parser.add_argument('--original', action='store_true', help='also show each image as it is in its file')
    parser.add_argument('--side', type=int, default=256, help='longer side of a picture in pixels (default: 256)')
    parser.add_argument(
        '--cfg-options', nargs='+', action='extend', metavar='KEY=VALUE', help='override config entries'
    )
    args = parser.parse_args()

    from mmseg_segmenter import engine
    from mmseg_segmenter.analysis import samples
    from mmseg_segmenter.command_line import errors_in_one_line

    with errors_in_one_line():
        cfg = engine.load_config(args.config, cfg_options=args.cfg_options)
        samples.browse_dataset(
            cfg, args.out, args.split, args.number, args.columns, args.seed, args.original, args.side
        )
    print('wrote', args.out)


if __name__ == '__main__':
    main()
