#!/usr/bin/env python
"""Convert a timm ViT or a DeiT: an older name of vit2mmseg.py, which reads all formats."""

import runpy
from pathlib import Path

if __name__ == '__main__':
    runpy.run_path(str(Path(__file__).with_name('vit2mmseg.py')), run_name='__main__')
