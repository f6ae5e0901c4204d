#!/usr/bin/env python
"""Write the checkpoint of a training with --shard, which is a folder, as one file. Runs in one process."""

import argparse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Write the checkpoint of a training with --shard as one file')
    parser.add_argument('src', help='checkpoint folder, such as work_dirs/CONFIG/iter_160000.pth')
    parser.add_argument('dst', help='checkpoint file to write; without the state of the optimizer')
    parser.add_argument('--force', action='store_true', help='replace an existing file')
    return parser.parse_args()


def main() -> None:
    args = parse_args()

    from mmseg_segmenter.command_line import errors_in_one_line
    from mmseg_segmenter.engine.sharding import consolidate
    from mmseg_segmenter.files import check_destination, refuse_existing, replace_file, write_checkpoint

    with errors_in_one_line():
        check_destination(args.dst, '.pth')
        refuse_existing(args.dst, args.force)
        checkpoint = consolidate(args.src)
        replace_file(args.dst, lambda path: write_checkpoint(path, checkpoint))
    print(args.dst)


if __name__ == '__main__':
    main()
