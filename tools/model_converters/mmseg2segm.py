#!/usr/bin/env python
"""Convert a Segmenter checkpoint to the layout of the official code: checkpoint.pth and variant.yml."""

from mmseg_segmenter.checkpoints.official_run import write_official_run
from mmseg_segmenter.command_line import conversion_parser, errors_in_one_line


def main() -> None:
    args = conversion_parser(
        __doc__,
        config='config of the model',
        checkpoint='its checkpoint',
        destination='folder for checkpoint.pth and variant.yml',
    ).parse_args()
    with errors_in_one_line():
        verified = write_official_run(args.config, args.checkpoint, args.destination, args.force, args.verify)
    if verified:
        print(f'verified: {verified}')
    print(f'wrote {args.destination}/checkpoint.pth and {args.destination}/variant.yml')


if __name__ == '__main__':
    main()
