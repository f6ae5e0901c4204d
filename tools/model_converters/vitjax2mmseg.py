#!/usr/bin/env python
"""Convert an AugReg or original JAX ViT (.npz) to mmseg's layout."""

import argparse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', help='pretrained weights')
    parser.add_argument('destination', help='.pth file to write, for init_cfg=dict(type="Pretrained", checkpoint=...)')
    parser.add_argument('--force', action='store_true', help='replace existing files')
    parser.add_argument('--verify', action='store_true', help='run both models on one image; write only if they agree')
    parser.add_argument('--patch-size', type=int, help='resize the patch embedding to patches of this many pixels')
    return parser.parse_args()


def main() -> None:
    args = parse_args()

    from mmseg_segmenter.checkpoints.convert import convert_and_report

    convert_and_report(args)


if __name__ == '__main__':
    main()
