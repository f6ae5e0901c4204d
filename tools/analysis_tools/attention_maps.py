#!/usr/bin/env python
"""Look inside a model: attention maps, attention distance, features of patches, similarity of classes."""

import argparse

EXAMPLES = """
Say what to draw, with one of these:
  %(prog)s CONFIG CHECKPOINT street.jpg --out a.png --patch 300,220 --layer 5 --head all
  %(prog)s CONFIG CHECKPOINT street.jpg --out b.png --cls --rollout
  %(prog)s CONFIG CHECKPOINT street.jpg --out c.png --class car            # mask transformer only
  %(prog)s CONFIG CHECKPOINT street.jpg --out h.png --query 3              # EoMT only
  %(prog)s CONFIG CHECKPOINT street.jpg --out d.png --similarity 300,220
  %(prog)s CONFIG CHECKPOINT street.jpg --out e.png --pca
  %(prog)s CONFIG CHECKPOINT images/    --out f.png --distance
  %(prog)s CONFIG CHECKPOINT            --out g.png --class-similarity
"""


def pixel(text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r}; expected X,Y in pixels of the image, such as 300,220') from None
    return x, y


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('image', nargs='*', help='image; with --distance images, folders and patterns')
    parser.add_argument('--out', required=True, metavar='FILE', help='figure to write: .png, .pdf, .svg or .jpg')
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('--patch', type=pixel, metavar='X,Y', help='attention of the patch at this pixel')
    what.add_argument('--cls', action='store_true', help='attention of the class token of the encoder')
    what.add_argument('--class', dest='class_name', metavar='NAME', help='attention of a class in the mask transformer')
    what.add_argument('--query', type=int, metavar='N', help='attention of a query in the last blocks of an EoMT')
    what.add_argument(
        '--similarity', type=pixel, metavar='X,Y', help='cosine similarity of features to those of the patch here'
    )
    what.add_argument('--pca', action='store_true', help='principal components of the features as colours')
    what.add_argument(
        '--distance', action='store_true', help='mean attention distance of each head and layer over images'
    )
    what.add_argument('--class-similarity', action='store_true', help='cosine similarity of the class embeddings')
    parser.add_argument(
        '--layer',
        type=int,
        help='number of the layer, from 0; of the decoder with --class (default: -1, the last)',
    )
    parser.add_argument('--head', help='number of the head, from 0; mean or all (default: mean)')
    parser.add_argument(
        '--rollout', action='store_true', help='attention through all layers up to --layer (attention rollout)'
    )
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:1, ... (default: auto)')
    parser.add_argument(
        '--cfg-options', nargs='+', action='extend', metavar='KEY=VALUE', help='override config entries'
    )
    args = parser.parse_intermixed_args()  # the image may follow an option
    attention = args.patch or args.cls or args.class_name or args.query is not None
    if (args.rollout or args.head) and not attention:
        parser.error(f'{"--rollout" if args.rollout else "--head"} needs --patch, --cls, --class or --query')
    if args.rollout and args.head not in (None, 'mean'):
        parser.error(f'--head {args.head} with --rollout, which averages over the heads')
    if args.layer is not None and (args.distance or args.class_similarity):
        parser.error('--layer needs --patch, --cls, --class, --query, --similarity or --pca')
    count = len(args.image)
    if args.class_similarity and count:
        parser.error('--class-similarity takes no image')
    if not args.class_similarity and not count:
        parser.error('expected an image after the checkpoint')
    if count > 1 and not args.distance:
        parser.error(f'expected one image, found {count}; only --distance takes several')
    args.layer = -1 if args.layer is None else args.layer
    args.head = args.head or 'mean'
    return args


def main() -> None:
    args = parse_args()

    from mmseg_segmenter.analysis.inspection import figures
    from mmseg_segmenter.apis import Predictor
    from mmseg_segmenter.apis.inputs import find_tasks
    from mmseg_segmenter.command_line import errors_in_one_line
    from mmseg_segmenter.engine.config import parse_options

    with errors_in_one_line():
        figures.check_figure(args.out)
        options = parse_options(args.cfg_options)
        predictor = Predictor(args.config, args.checkpoint, device=args.device, cfg_options=options)
        if args.class_similarity:
            figures.save_class_similarity(args.out, predictor)
        elif args.distance:
            images = [task.source for task in find_tasks(args.image)]
            for layer, distances in enumerate(figures.save_distances(args.out, predictor, images)):
                print(f'layer {layer:2}: {distances.mean():.1f} pixels, by head', *(f'{d:.0f}' for d in distances))
        elif args.similarity:
            figures.save_similarity(args.out, predictor, args.image[0], args.similarity, args.layer)
        elif args.pca:
            figures.save_colors(args.out, predictor, args.image[0], args.layer)
        else:
            subject = figures.Subject(args.patch, args.cls, args.class_name, args.query)
            figures.save_attention(args.out, predictor, args.image[0], subject, args.layer, args.head, args.rollout)
    print('wrote', args.out)


if __name__ == '__main__':
    main()
