#!/usr/bin/env python
"""Convert masks with a colour (or grey level) for each class to label maps."""

import argparse


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Without a palette, list the colours of the masks in the format of a palette.',
    )
    parser.add_argument('source', help='folder of masks')
    parser.add_argument('destination', nargs='?', help='folder for the label maps (PNG)')
    parser.add_argument('--palette', help='text file with a line "R G B [LABEL] [name]" for each colour')
    parser.add_argument(
        '--tolerance',
        type=int,
        default=0,
        help='largest difference from a colour of the palette, for masks saved as JPEG (default: 0)',
    )
    parser.add_argument(
        '--rename',
        nargs=2,
        metavar=('PATTERN', 'REPLACEMENT'),
        help='rename the files with re.sub, applied to the name before the suffix',
    )
    parser.add_argument('--force', action='store_true', help='replace existing label maps')
    args = parser.parse_args()
    if (args.destination is None) != (args.palette is None):
        parser.error('a destination and --palette go together')

    from mmseg_segmenter.command_line import errors_in_one_line
    from mmseg_segmenter.datasets import colours

    with errors_in_one_line():
        if args.palette is None:
            for (red, green, blue), pixels, masks in colours.count_colours(args.source):
                print(f'{red:3} {green:3} {blue:3}  # {pixels} pixels in {masks} masks')
            return
        palette = colours.read_palette(args.palette)
        count = colours.convert(args.source, args.destination, palette, args.tolerance, args.rename, args.force)
    print(
        f'wrote {count} label maps with labels {", ".join(map(str, sorted(set(palette.values()))))} to '
        f'{args.destination}'
    )


if __name__ == '__main__':
    main()
