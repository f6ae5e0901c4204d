#!/usr/bin/env python
"""Evaluate a checkpoint. Takes the arguments of mmseg's tools/test.py."""

import argparse
import os


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Evaluate a segmentor')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--work-dir', help='folder for logs and scores (default: work_dirs/<config name>)')
    parser.add_argument('--out', help='folder for the predicted label maps (PNG)')
    parser.add_argument('--show', action='store_true', help='show the pictures in a window')
    parser.add_argument('--show-dir', help='folder for pictures of image, annotation and prediction side by side')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds for which a window stays open (default: 2)')
    parser.add_argument('--amp', action='store_true', help='use half precision: fp16 on a GPU, bf16 on a CPU')
    parser.add_argument('--compile', action='store_true', help='compile backbone and head (torch.compile)')
    parser.add_argument(
        '--runtime', choices=['torch', 'onnxruntime', 'openvino'], default='torch',
        help='what runs the network (default: torch); the others run on the CPU',
    )  # fmt: skip
    parser.add_argument(
        '--precision', choices=['fp32', 'bf16', 'fp16', 'int8'],
        help='of the network in another runtime than torch (default: fp32); int8 needs --network',
    )  # fmt: skip
    parser.add_argument('--network', metavar='FILE', help='the network, exported for the runtime')
    parser.add_argument(
        '--tta', action='store_true', help='average predictions over scales and flips (tta_pipeline of the config)'
    )
    parser.add_argument(
        '--allow-partial', action='store_true', help='score a model even if the checkpoint lacks some of its tensors'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action='extend', metavar='KEY=VALUE',
        help='override config entries, e.g. model.test_cfg.mode=whole',
    )  # fmt: skip
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.runtime == 'torch' and (args.precision or args.network):
        parser.error('--precision and --network are for --runtime onnxruntime and openvino')
    if args.runtime != 'torch' and (args.amp or args.compile):
        parser.error('--amp and --compile are for --runtime torch')
    return args


def main() -> None:
    args = parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))

    from mmseg_segmenter import engine
    from mmseg_segmenter.command_line import errors_in_one_line

    with errors_in_one_line():
        cfg = engine.load_config(args.config, args.work_dir, args.cfg_options, args.launcher)
        cfg.load_from = engine.find_checkpoint(args.checkpoint)
        if args.show or args.show_dir:
            engine.enable_drawing(cfg, args.show_dir, args.show, args.wait_time)
        if args.amp:
            engine.enable_test_amp(cfg)
        if args.runtime != 'torch':
            from mmseg_segmenter.deployment.hook import enable_runtime

            enable_runtime(cfg, args.runtime, args.precision, args.network)
        if args.tta:
            engine.enable_tta(cfg)
        if args.out:
            engine.save_predictions(cfg, args.out)
        engine.check_datasets(cfg, ('test_dataloader',))
        engine.run(cfg, 'test', args.compile, args.allow_partial)


if __name__ == '__main__':
    main()
