#!/usr/bin/env python
"""Draw a small labelled dataset in ADE20K's folder layout, for the demo."""

import argparse
import re


def height_by_width(text: str) -> tuple[int, int]:
    match = re.fullmatch(r'(\d+)x(\d+)', text)
    if match is None:
        raise argparse.ArgumentTypeError(f'{text!r}; expected HxW, e.g. 192x256')
    return int(match[1]), int(match[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('out', help='folder to create')
    parser.add_argument('--images', type=int, default=400, help='number of images, a fifth for validation')
    parser.add_argument('--size', type=height_by_width, default='192x256', metavar='HxW', help='image size in pixels')
    parser.add_argument('--classes', type=int, default=5, help='number of classes')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()

    from mmseg_segmenter.command_line import errors_in_one_line
    from mmseg_segmenter.datasets.shapes import ALL_CLASSES, make_shapes

    with errors_in_one_line():
        make_shapes(args.out, args.images, args.size, args.classes, args.seed)
    names = ', '.join(shape.name for shape in ALL_CLASSES[: args.classes])
    print(f'wrote {args.images} images of {args.size[0]}x{args.size[1]} to {args.out}, {args.classes} classes: {names}')


if __name__ == '__main__':
    main()
