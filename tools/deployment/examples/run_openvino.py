#!/usr/bin/env python
"""Segment an image with a file that export.py wrote for OpenVINO. Needs openvino, numpy and pillow."""

import argparse
import json

import numpy as np
import openvino
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('model', help='.xml file; the .bin file is beside it')
    parser.add_argument('image', help='image to segment')
    parser.add_argument('out', help='PNG to write, in the colours of the classes')
    parser.add_argument('--hint', default='f32', help='f32 (default) or bf16: precision of what is not in int8')
    args = parser.parse_args()

    model = openvino.Core().read_model(args.model)
    names = ('classes', 'palette', 'size')
    classes, palette, size = (json.loads(model.get_rt_info(['mmseg_segmenter', name]).astype(str)) for name in names)
    network = openvino.compile_model(model, 'CPU', {'INFERENCE_PRECISION_HINT': args.hint})

    picture = Image.open(args.image).convert('RGB')
    image = picture.resize(size[::-1]) if size else picture  # a file with free size has none
    labels = network({'image': np.asarray(image)[None]})['labels']  # (1, H, W, 3) -> (1, H, W)

    mask = Image.fromarray(labels[0].astype(np.uint8))
    mask.putpalette(np.array(palette, np.uint8).tobytes())
    mask.resize(picture.size, Image.Resampling.NEAREST).save(args.out)
    for label, pixels in zip(*np.unique(labels, return_counts=True), strict=True):
        print(f'{classes[label]}: {pixels / labels.size:.1%}')


if __name__ == '__main__':
    main()
