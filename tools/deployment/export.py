#!/usr/bin/env python
"""Export a model to ONNX, OpenVINO, torch.export (.pt2) or TorchScript.

The file takes an RGB image of uint8 and returns its labels, at one size: it runs without this package, and all but
.pt2 and TorchScript without torch. --no-normalise and --no-argmax leave out the first and the last step, and
--dynamic makes the size free.
"""

import argparse

EXAMPLES = """
examples:
  %(prog)s CONFIG CHECKPOINT model.onnx --format onnx --check image.jpg
  %(prog)s CONFIG CHECKPOINT model.xml --format openvino --size 512x1024 --check images/
  %(prog)s CONFIG CHECKPOINT model.xml --format openvino --precision int8
  %(prog)s CONFIG CHECKPOINT network.onnx --format onnx --dynamic --no-normalise --no-argmax
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('out', help='file to write: .onnx, .xml (OpenVINO), .pt2 or .pt (TorchScript)')
    parser.add_argument('--format', required=True, choices=['onnx', 'openvino', 'pt2', 'torchscript'])
    parser.add_argument(
        '--precision', default='fp32', choices=['fp32', 'fp16', 'bf16', 'int8'], help='of the network (default: fp32)'
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        '--size', metavar='HxW', help='size of the images (default: test_cfg.crop_size, else img_size of the backbone)'
    )
    size.add_argument('--dynamic', action='store_true', help='images of any size, and any number of them')
    parser.add_argument(
        '--argmax',
        action=argparse.BooleanOptionalAction,
        default=True,
        help='return labels, of uint8 up to 256 classes; otherwise logits (default: --argmax)',
    )
    parser.add_argument(
        '--normalise',
        action=argparse.BooleanOptionalAction,
        default=True,
        help='normalise uint8 RGB images inside; otherwise take what the data preprocessor returns '
        '(default: --normalise)',
    )
    parser.add_argument(
        '--check',
        nargs='+',
        action='extend',
        default=[],
        metavar='IMAGE',
        help='compare the file with the model on these images or folders; it is not written if they differ by more '
        'than the precision explains',
    )
    parser.add_argument(
        '--calibration',
        nargs='+',
        action='extend',
        default=[],
        metavar='IMAGE',
        help='images or folders for int8 (default: 128 of the training set)',
    )
    parser.add_argument(
        '--max-drop',
        type=float,
        default=0.5,
        metavar='POINTS',
        help='mIoU that int8 may lose on the validation set before the head stays in floating point (default: 0.5)',
    )
    parser.add_argument('--force', action='store_true', help='replace existing files')
    parser.add_argument(
        '--cfg-options', nargs='+', action='extend', metavar='KEY=VALUE', help='override config entries'
    )
    args = parser.parse_args()
    if args.calibration and args.precision != 'int8':
        parser.error('--calibration is for --precision int8')
    return args


def main() -> None:
    args = parse_args()

    from mmseg_segmenter.apis import Predictor
    from mmseg_segmenter.apis.export import ExportOptions, export, image_files, parse_size
    from mmseg_segmenter.command_line import errors_in_one_line
    from mmseg_segmenter.deployment.files import check_format
    from mmseg_segmenter.engine.config import parse_options

    with errors_in_one_line():
        check_format(args.format, args.precision, args.dynamic)
        options = ExportOptions(
            args.format,
            args.precision,
            parse_size(args.size) if args.size else None,
            args.dynamic,
            args.argmax,
            args.normalise,
        )
        check, calibration = image_files(args.check), image_files(args.calibration)
        predictor = Predictor(args.config, args.checkpoint, device='cpu', cfg_options=parse_options(args.cfg_options))
        result = export(predictor, args.out, options, check, calibration, args.max_drop, args.force)
    if result.scores is not None:
        print(f'mIoU of the validation set: {result.scores[0]:.2f} before, {result.scores[1]:.2f} after')
    if result.kept:
        print(f'the {result.kept} layers of the head stay in floating point')
    if result.agreement is not None:
        print(f'checked: {result.agreement}')
    print(f'wrote {", ".join(result.files)} ({result.bytes / 1e6:.1f} MB): {result.signature}')


if __name__ == '__main__':
    main()
