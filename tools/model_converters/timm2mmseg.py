#!/usr/bin/env python
"""Convert a timm ViT or a DeiT, distilled too (.pth, .safetensors), to mmseg's layout."""

from mmseg_segmenter.checkpoints.convert import command_line

if __name__ == '__main__':
    command_line(__doc__)
