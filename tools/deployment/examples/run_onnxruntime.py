#!/usr/bin/env python
"""Segment an image with a file that export.py wrote for ONNX. Needs onnxruntime, numpy and pillow."""

import argparse
import json

import numpy as np
import onnxruntime
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('model', help='.onnx file')
    parser.add_argument('image', help='image to segment')
    parser.add_argument('out', help='PNG to write, in the colours of the classes')
    args = parser.parse_args()

    session = onnxruntime.InferenceSession(args.model, providers=['CPUExecutionProvider'])
    metadata = session.get_modelmeta().custom_metadata_map
    classes, palette, size = (json.loads(metadata[name]) for name in ('classes', 'palette', 'size'))

    picture = Image.open(args.image).convert('RGB')
    image = picture.resize(size[::-1]) if size else picture  # a file with free size has none
    (labels,) = session.run(['labels'], {'image': np.asarray(image)[None]})  # (1, H, W, 3) -> (1, H, W)

    mask = Image.fromarray(labels[0].astype(np.uint8))
    mask.putpalette(np.array(palette, np.uint8).tobytes())
    mask.resize(picture.size, Image.Resampling.NEAREST).save(args.out)
    for label, pixels in zip(*np.unique(labels, return_counts=True), strict=True):
        print(f'{classes[label]}: {pixels / labels.size:.1%}')


if __name__ == '__main__':
    main()
