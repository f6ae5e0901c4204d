#!/usr/bin/env python
"""Convert an AugReg or original JAX ViT (.npz) to mmseg's layout."""

from mmseg_segmenter.checkpoints.convert import command_line

if __name__ == '__main__':
    command_line(__doc__)
