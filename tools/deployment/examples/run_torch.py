#!/usr/bin/env python
"""Segment an image with a .pt2 or TorchScript file that export.py wrote. Needs torch, numpy and pillow."""

import argparse
import json

import numpy as np
import torch
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('model', help='.pt2 file, or .pt of TorchScript')
    parser.add_argument('image', help='image to segment')
    parser.add_argument('out', help='PNG to write, in the colours of the classes')
    args = parser.parse_args()

    metadata = {'classes': '', 'palette': '', 'size': ''}  # names of the entries to read
    if args.model.endswith('.pt2'):
        network = torch.export.load(args.model, extra_files=metadata).module()
    else:
        network = torch.jit.load(args.model, _extra_files=metadata)
    classes, palette, size = (json.loads(metadata[name]) for name in ('classes', 'palette', 'size'))

    picture = Image.open(args.image).convert('RGB')
    image = picture.resize(size[::-1]) if size else picture  # a file with free size has none
    with torch.no_grad():
        labels = network(torch.from_numpy(np.array(image))[None]).numpy()  # (1, H, W, 3) -> (1, H, W)

    mask = Image.fromarray(labels[0].astype(np.uint8))
    mask.putpalette(np.array(palette, np.uint8).tobytes())
    mask.resize(picture.size, Image.Resampling.NEAREST).save(args.out)
    for label, pixels in zip(*np.unique(labels, return_counts=True), strict=True):
        print(f'{classes[label]}: {pixels / labels.size:.1%}')


if __name__ == '__main__':
    main()
