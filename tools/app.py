#!/usr/bin/env python
"""Look at the predictions of one or two trained models in the browser."""

import argparse

USAGE = """
  app.py CONFIG CHECKPOINT [CONFIG CHECKPOINT] [options]
  app.py RUN_FOLDER [RUN_FOLDER] [options]"""
EXAMPLES = """examples:
  app.py CONFIG CHECKPOINT                            open http://127.0.0.1:7860 in a browser
  app.py work_dirs/my_run --examples data/val/images  with images to pick from
  app.py work_dirs/first work_dirs/second             two models side by side
  ssh -L 7860:127.0.0.1:7860 SERVER                   see the page of a server from your own machine"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, usage=USAGE, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'models', nargs='+', metavar='MODEL',
        help='config file and checkpoint (path or URL), or a folder with both; twice to compare two models',
    )  # fmt: skip
    parser.add_argument('--examples', metavar='FOLDER', help='images to pick from, the first 24 of a folder')
    parser.add_argument(
        '--host', default='127.0.0.1',
        help='address to listen on (default: 127.0.0.1, for this machine only). There is no authentication: with '
        '0.0.0.0, whoever reaches this machine can use the page',
    )  # fmt: skip
    parser.add_argument('--port', type=int, default=7860, help='0 for any free one (default: 7860)')
    parser.add_argument('--max-megabytes', type=float, default=32, help='size of an uploaded file (default: 32)')
    parser.add_argument('--max-megapixels', type=float, default=50, help='size of an uploaded image (default: 50)')
    parser.add_argument('--device', default='auto', help='auto (default), cpu, cuda, cuda:1, ...')
    parser.add_argument('--amp', action='store_true', help='half precision: fp16 on a GPU, bf16 on a CPU')
    parser.add_argument('--allow-partial', action='store_true', help='accept a checkpoint that lacks tensors')
    parser.add_argument(
        '--cfg-options', nargs='+', action='extend', metavar='KEY=VALUE',
        help='override config entries of the models, e.g. model.test_cfg.mode=whole',
    )  # fmt: skip
    return parser.parse_args()


def main() -> None:
    args = parse_args()

    from mmseg_segmenter.app.server import serve
    from mmseg_segmenter.command_line import errors_in_one_line

    with errors_in_one_line():
        serve(args)


if __name__ == '__main__':
    main()
