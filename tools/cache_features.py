#!/usr/bin/env python
"""Compute the features of a frozen backbone for a training set, and write them for tools/train.py --features."""

import argparse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of the training, with model.backbone.frozen_exclude=[]')
    parser.add_argument('out', metavar='DIR', help='folder for the features; what is there already is kept')
    parser.add_argument('--variants', type=int, default=1, help='fixed augmentations of each image (default: 1)')
    parser.add_argument('--seed', type=int, default=0, help='of the augmentations (default: 0)')
    parser.add_argument('--half', action='store_true', help='float16, which takes half the space')
    parser.add_argument('--checkpoint', help='weights (default: those that the training starts from)')
    parser.add_argument(
        '--cfg-options', nargs='+', action='extend', metavar='KEY=VALUE', help='override config entries, as in train.py'
    )
    args = parser.parse_args()

    from functools import partial

    from mmseg_segmenter import engine
    from mmseg_segmenter.command_line import errors_in_one_line
    from mmseg_segmenter.datasets.feature_cache import cache_features

    with errors_in_one_line():
        cfg = engine.load_config(args.config, cfg_options=args.cfg_options)
        engine.check_datasets(cfg, ('train_dataloader',))
        engine.check_weights(cfg)
        if args.checkpoint:
            engine.find_checkpoint(args.checkpoint)
        with engine.registry_errors(cfg):
            cache_features(
                cfg, args.out, args.variants, args.seed, args.half, args.checkpoint, partial(print, flush=True)
            )


if __name__ == '__main__':
    main()
