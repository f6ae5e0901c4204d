#!/usr/bin/env python
"""Train a segmentor. Takes the arguments of mmseg's tools/train.py."""

import argparse
import os


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Train a segmentor')
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/<config name>)')
    resume = parser.add_mutually_exclusive_group()
    resume.add_argument('--resume', action='store_true', help='continue from the last checkpoint in the work dir')
    resume.add_argument('--auto-resume', action='store_true', help='continue if there is a checkpoint, otherwise start')
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument('--amp-dtype', choices=['fp16', 'bf16'], help='default: fp16 on a GPU, bf16 on a CPU')
    parser.add_argument('--compile', action='store_true', help='compile backbone and head (torch.compile)')
    parser.add_argument('--shard', action='store_true', help='share the state of the model among the processes (FSDP2)')
    parser.add_argument('--features', metavar='DIR', help='train on what tools/cache_features.py wrote, not on images')
    parser.add_argument(
        '--cfg-options', nargs='+', action='extend', metavar='KEY=VALUE',
        help='override config entries, e.g. train_cfg.max_iters=100',
    )  # fmt: skip
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))

    from mmseg_segmenter import engine
    from mmseg_segmenter.command_line import errors_in_one_line
    from mmseg_segmenter.datasets.feature_cache import use_cached_features

    with errors_in_one_line():
        cfg = engine.load_config(args.config, args.work_dir, args.cfg_options, args.launcher)
        cfg.resume = 'auto' if args.auto_resume else args.resume or cfg.get('resume', False)
        if args.amp:
            engine.enable_amp(cfg, args.amp_dtype)
        if args.shard:
            engine.enable_sharding(cfg)
        if args.features:
            use_cached_features(cfg, args.features)
        engine.check_datasets(cfg, ('train_dataloader', 'val_dataloader'))
        engine.check_weights(cfg)
        engine.run(cfg, 'train', args.compile)


if __name__ == '__main__':
    main()
