#!/usr/bin/env python
"""Convert a pretrained ViT of any known format to mmseg's layout.

The format is recognised: AugReg and original JAX ViTs (.npz), timm, DeiT, DeiT-III, DINO, MAE, DINOv2 and DINOv3 of
their authors, of timm and of transformers (.pth, .safetensors, or the index of a sharded file).
"""

import argparse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', help='pretrained weights')
    parser.add_argument('destination', help='.pth file to write, for init_cfg=dict(type="Pretrained", checkpoint=...)')
    parser.add_argument('--force', action='store_true', help='replace existing files')
    parser.add_argument('--verify', action='store_true', help='run both models on one image; write only if they agree')
    parser.add_argument('--patch-size', type=int, help='resize the patch embedding to patches of this many pixels')
    parser.add_argument(
        '--num-heads',
        type=int,
        help='attention heads (default: from the file or a config.json beside it, else width / 64)',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()

    from mmseg_segmenter.checkpoints.convert import convert_and_report

    convert_and_report(args)


if __name__ == '__main__':
    main()
