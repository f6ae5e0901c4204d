#!/usr/bin/env python
"""Write the confusion matrix and the scores by class of a test set, as a plot and as tables."""

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
    parser.add_argument('--out', required=True, metavar='NAME.png', help='plot; the tables are named after it')
    parser.add_argument(
        '--sort',
        choices=['class', 'iou', 'share'],
        default='class',
        help='order of the table: by class number, lowest IoU first, or most frequent class first (default: class)',
    )
    parser.add_argument('--work-dir', help='folder for the log (default: work_dirs/<config name>)')
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
    from mmseg_segmenter.analysis import confusion
    from mmseg_segmenter.command_line import errors_in_one_line
    from mmseg_segmenter.evaluation.report import report_files

    with errors_in_one_line():
        cfg = engine.load_config(args.config, args.work_dir, args.cfg_options)
        if args.predictions:
            confusion.evaluate_label_maps(cfg, args.predictions, args.out, args.sort)
        else:
            confusion.evaluate_checkpoint(cfg, args.checkpoint, args.out, args.sort)
    files = report_files(args.out)
    with open(files[-1], encoding='utf-8') as table:
        print(table.read(), end='')
    print('wrote', *files)


if __name__ == '__main__':
    main()
