#!/usr/bin/env python
"""Segment images, folders of images, videos and rasters, and write pictures, masks and numbers."""

import argparse

OUTPUTS = ('overlay', 'mask', 'labels', 'probabilities', 'comparison', 'legend')
USAGE = """
  predict.py CONFIG CHECKPOINT INPUT... --out DIR [options]
  predict.py RUN_FOLDER INPUT... --out DIR [options]"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Segment images', usage=USAGE, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='Exit codes: 0 all inputs are done, 1 some failed, 130 interrupted (--resume continues).',
    )  # fmt: skip
    parser.add_argument('config', metavar='CONFIG', help='config file; or a folder with a config and a checkpoint')
    parser.add_argument(
        'inputs', nargs='+', metavar='INPUT',
        help='the checkpoint (path or URL), then: image, folder (searched recursively), glob pattern, text file with '
        'one input per line (.txt), URI such as https://... or s3://..., video, or camera (camera:0)',
    )  # fmt: skip
    parser.add_argument('--out', required=True, help='folder or URI for the results')
    parser.add_argument(
        '--outputs', type=lambda text: tuple(text.split(',')), default=('overlay',), metavar='KIND[,KIND...]',
        help=f'what to write, each kind into a folder of its name (default: overlay): {", ".join(OUTPUTS)}',
    )  # fmt: skip
    parser.add_argument('--opacity', type=float, default=0.5, help='of the colours in overlays, 0 to 1 (default: 0.5)')
    parser.add_argument('--overlay-format', choices=('jpg', 'png'), default='jpg', help='of overlays (default: jpg)')
    parser.add_argument('--annotations', metavar='DIR', help='label maps to compare with (turns on comparison)')
    again = parser.add_mutually_exclusive_group()
    again.add_argument('--resume', action='store_true', help='skip the inputs that an earlier run has done')
    again.add_argument('--force', action='store_true', help='replace the results of an earlier run')
    parser.add_argument('--batch-size', type=int, default=1, help='images per forward pass (default: 1)')
    parser.add_argument('--window-batch-size', type=int, help='sliding windows per forward pass (default: as config)')
    parser.add_argument('--device', default='auto', help='auto (default), cpu, cuda, cuda:1, ...')
    parser.add_argument('--amp', action='store_true', help='half precision: fp16 on a GPU, bf16 on a CPU')
    parser.add_argument(
        '--runtime', choices=('torch', 'onnxruntime', 'openvino'), default='torch',
        help='what runs the network (default: torch); the others run on the CPU',
    )  # fmt: skip
    parser.add_argument(
        '--precision', choices=('fp32', 'fp16', 'bf16', 'int8'),
        help='of the network, as the runtime has it (default: fp32); int8 needs --network',
    )  # fmt: skip
    parser.add_argument(
        '--network', metavar='FILE',
        help='the network, exported for the runtime (default: made from the checkpoint, which takes seconds)',
    )  # fmt: skip
    parser.add_argument('--tta', action='store_true', help='average over scales and flips (tta_pipeline)')
    parser.add_argument('--compile', action='store_true', help='compile backbone and head (torch.compile)')
    parser.add_argument(
        '--raster', action=argparse.BooleanOptionalAction,
        help='segment images strip by strip, into GeoTIFFs of labels (default: GeoTIFFs with a coordinate system and '
        'images of more than 150 megapixels)',
    )  # fmt: skip
    parser.add_argument(
        '--max-pixels', type=int, metavar='N',
        help='refuse larger images before they are decoded (default: 268 million); rasters have no limit',
    )  # fmt: skip
    parser.add_argument(
        '--bands', type=lambda text: tuple(int(band) for band in text.split(',')), metavar='R,G,B',
        help='bands of rasters, counted from 1 (default: 1,2,3, or the only one)',
    )  # fmt: skip
    parser.add_argument(
        '--value-range', type=float, nargs=2, metavar=('LOW', 'HIGH'),
        help='values of rasters that become black and white (needed unless they have 8 bits)',
    )  # fmt: skip
    parser.add_argument('--max-frames', type=int, metavar='N', help='frames of a video or camera (default: all)')
    parser.add_argument('--readers', type=int, default=2, help='threads that read images (default: 2)')
    parser.add_argument('--writers', type=int, default=2, help='threads that write results (default: 2)')
    parser.add_argument('--allow-partial', action='store_true', help='accept a checkpoint that lacks tensors')
    parser.add_argument(
        '--cfg-options', nargs='+', action='extend', metavar='KEY=VALUE',
        help='override config entries, e.g. model.test_cfg.mode=whole',
    )  # fmt: skip
    parser.add_argument(
        '--engine', choices=('local', 'ray'), default='local',
        help='ray: segment on a Ray cluster, with one model per GPU or CPU (default: local)',
    )  # fmt: skip
    parser.add_argument(
        '--address', metavar='ADDR',
        help='of the Ray cluster: HOST:PORT, or auto (default: RAY_ADDRESS, or a cluster on this machine for this run)',
    )  # fmt: skip
    parser.add_argument(
        '--cpus-per-worker', type=int, default=1, help='CPUs of each model with --engine ray (default: 1)'
    )
    parser.add_argument(
        '--launcher', choices=('none', 'pytorch'), default='none',
        help='pytorch: share the inputs with the other processes of torchrun (see dist_predict.sh; default: none)',
    )  # fmt: skip
    return parser.parse_args()


def main() -> None:
    args = parse_args()

    from mmseg_segmenter.apis.command import predict
    from mmseg_segmenter.command_line import errors_in_one_line

    with errors_in_one_line():
        raise SystemExit(predict(args))


if __name__ == '__main__':
    main()
