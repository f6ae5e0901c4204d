#!/usr/bin/env python
"""Convert an AugReg or original JAX ViT (.npz) to mmseg's layout."""

import sys

from mmseg_segmenter.checkpoints.convert import command_line

if __name__ == '__main__':
    sys.exit(command_line(__doc__ or ''))
