#!/usr/bin/env python
"""Measure time and memory of models side by side, with --vs mmseg also on mmseg's own classes."""

import argparse


def size(text: str) -> tuple[int, int]:
    height, _, width = text.partition('x')
    return int(height), int(width or height)  # 512 is 512x512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('configs', nargs='+', help='any mmseg configs with a model')
    beside = parser.add_mutually_exclusive_group()
    beside.add_argument(
        '--vs', choices=['mmseg', 'frozen', 'transformers'],
        help="also run mmseg's own classes, (--mode train) a frozen backbone, or (EoMT on DINOv2) the model of "
        'transformers, with the same weights',
    )  # fmt: skip
    beside.add_argument(
        '--runtimes', nargs='+', default=[], metavar='NAME',
        choices=['compile', 'bf16', 'onnxruntime', 'openvino', 'openvino-bf16', 'openvino-int8'],
        help='also run it by these: %(choices)s (the first two are torch)',
    )  # fmt: skip
    parser.add_argument('--checkpoint', help='weights (default: random)')
    parser.add_argument(
        '--images', nargs='+', default=[], help='images to time, to compare labels on and to calibrate int8 with'
    )
    parser.add_argument('--mode', choices=['forward', 'train', 'slide', 'tta', 'loader'], default='forward')
    parser.add_argument('--size', type=size, nargs='+', default=[(512, 512)], metavar='HxW', help='image sizes')
    parser.add_argument('--batch-size', type=int, nargs='+', default=[1])
    parser.add_argument('--classes', type=int, nargs='+', default=[None], help="instead of the config's")
    parser.add_argument('--amp', choices=['bf16', 'fp16'], help='under autocast')
    parser.add_argument('--compile', action='store_true', help='compile backbone and head')
    parser.add_argument('--repeat', type=int, default=7, help='timed runs of each (default: 7); the median counts')
    parser.add_argument('--no-memory', action='store_true', help='leave out the peak memory, which runs each once more')
    parser.add_argument('--samples', type=int, default=50, help='number of images in --mode loader (default: 50)')
    parser.add_argument('--skip-bad', action='store_true', help='in --mode loader: as with skip_bad=True in training')
    parser.add_argument('--json', help='file for machine, versions and all figures')
    parser.add_argument('--plot', help='PNG of time and memory against image size')
    parser.add_argument(
        '--cfg-options', nargs='+', action='extend', metavar='KEY=VALUE', help='override config entries'
    )
    args = parser.parse_args()
    if args.vs == 'frozen' and args.mode != 'train':
        parser.error(f'--vs frozen --mode {args.mode}: expected --mode train, in which alone they differ')

    from mmseg_segmenter import engine
    from mmseg_segmenter.analysis import benchmark
    from mmseg_segmenter.command_line import errors_in_one_line

    benchmark.prepare()
    with errors_in_one_line():
        options = engine.parse_options(args.cfg_options)
        if args.mode == 'loader':
            for config in args.configs:
                times = benchmark.loader(config, options, args.samples, args.vs == 'mmseg', args.skip_bad)
                print(benchmark.loader_table(config, times))
            return
        dtype = args.amp or 'float32'
        peak = benchmark.matmul_peak(dtype) if args.mode == 'forward' else None
        records = []
        for classes in args.classes:
            for batch_size in args.batch_size:
                for image_size in args.size:
                    case = benchmark.Case(
                        args.mode, image_size, batch_size, classes, dtype, args.compile, tuple(args.images)
                    )
                    models = [
                        side
                        for config in args.configs
                        for side in benchmark.contenders(
                            config, [args.vs] if args.vs else [], classes, options, args.runtimes, args.checkpoint
                        )
                    ]
                    benchmark.compare(case, models, args.repeat, not args.no_memory, peak)
                    records.append(benchmark.record(case, models))
                    print(benchmark.table(case, models), flush=True)
    if peak:
        print(f'matrix product of this machine: {peak:.0f} GFLOP/s ({dtype})')
    if args.json:
        benchmark.write_json(args.json, records, peak)
    if args.plot:
        benchmark.plot(args.plot, records)


if __name__ == '__main__':
    main()
