#!/usr/bin/env python
"""Read every image and mask of a config as training would, and report what is wrong with them."""

import argparse
import sys


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog='exit code: 1 if there are errors, 0 for warnings only'
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('--workers', type=int, help='number of processes (default: one for each core)')
    parser.add_argument(
        '--json', metavar='FILE', help='write the whole report to FILE, with up to 1000 file names for each problem'
    )
    parser.add_argument('--plot', metavar='FILE', help='write a plot of the class frequencies to FILE (PNG)')
    parser.add_argument(
        '--cfg-options', nargs='+', action='extend', metavar='KEY=VALUE', help='override config entries'
    )
    args = parser.parse_args()

    from mmengine.registry import init_default_scope

    from mmseg_segmenter import engine
    from mmseg_segmenter.command_line import errors_in_one_line
    from mmseg_segmenter.datasets.check import check_dataset
    from mmseg_segmenter.datasets.check import report as check_report
    from mmseg_segmenter.files import check_destination

    with errors_in_one_line():
        cfg = engine.load_config(args.config, cfg_options=args.cfg_options)
        init_default_scope(cfg.get('default_scope', 'mmseg'))
        for path in filter(None, (args.json, args.plot)):
            check_destination(path)
        report = check_dataset(cfg, args.workers)
        print(check_report.as_text(report))
        if args.json:
            check_report.write_json(report, args.json)
        if args.plot:
            check_report.plot(report, args.plot)
    return 1 if report.errors else 0


if __name__ == '__main__':
    sys.exit(main())
