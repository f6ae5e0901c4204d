"""Images that ask for more memory than there is are refused in one line, wherever an image is opened."""

import io
from pathlib import Path

import numpy as np
import pytest
from bombs import IMAGES, SIZES, with_little_memory
from mmseg.registry import TRANSFORMS
from PIL import Image
from tiny_run import dataset_config

from mmseg_segmenter.analysis.benchmark.workload import _read_image
from mmseg_segmenter.analysis.samples import folder_predictor
from mmseg_segmenter.apis import read_image
from mmseg_segmenter.apis.inputs import read_header
from mmseg_segmenter.apis.loading import AnnotationFormat
from mmseg_segmenter.apis.outputs import Annotations
from mmseg_segmenter.app.uploads import DEFAULT_LIMITS, decode
from mmseg_segmenter.datasets.colours import read_colours
from mmseg_segmenter.datasets.image_files import check_pixels
from mmseg_segmenter.errors import UserError


def readers(path):
    """Return all that opens images: training, tests, predict, export, page, colours, sheets, benchmark."""
    folder, stem = path.parent, path.stem
    labels = Annotations(str(folder), AnnotationFormat(path.suffix, path.suffix, False))
    info = dict(img_path=str(path), seg_map_path=str(path), seg_fields=[], label_map=None, reduce_zero_label=False)
    return {
        'LoadImage': lambda: TRANSFORMS.build(dict(type='LoadImage'))(dict(info)),
        'LoadLabelMap': lambda: TRANSFORMS.build(dict(type='LoadLabelMap'))(dict(info, seg_fields=[])),
        'read_image': lambda: read_image(path),
        'read_header': lambda: read_header(str(path)),
        'page': lambda: decode(path.read_bytes(), path.name, DEFAULT_LIMITS),
        'colours': lambda: read_colours(str(path)),
        'comparison': lambda: labels.read(str(path), stem),
        'benchmark': lambda: _read_image(str(path), (8, 8)),
    }


@pytest.mark.parametrize('name', IMAGES)
def test_image(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(IMAGES[name]())

    def read_all():
        outcomes = []
        for reader, read in readers(path).items():
            try:
                read()
                outcomes.append(f'{reader}: read')
            except UserError as error:
                outcomes.append(f'{reader}: {error}')
        return outcomes

    outcomes = with_little_memory(read_all)
    assert len(outcomes) == 8, outcomes
    for outcome in outcomes:
        reader, _, message = outcome.partition(': ')
        assert message == 'read' or (name in message and '\n' not in message), outcome
        if name in SIZES and reader != 'read_header':
            assert 'pixels' in message, outcome


@pytest.mark.parametrize('mode', ['1', 'L', 'P', 'LA', 'RGB', 'RGBA', 'I;16'])
def test_pixels_that_cannot_be_packed(mode):
    """They take more bytes than the pixels, and are no bomb."""
    for size in ((1, 1), (3, 700), (700, 500)):
        noise = np.random.default_rng(0).bytes(size[0] * size[1] * 4)
        image = Image.frombytes('RGBA', size, noise)
        image = Image.frombytes(mode, size, noise) if mode == 'I;16' else image.convert(mode)
        file = io.BytesIO()
        image.save(file, 'PNG', compress_level=0)
        check_pixels(file.getvalue(), 'noise.png')


@pytest.mark.parametrize('name', ['real.png', 'huge.tif', 'huge.webp'])
def test_check_dataset(tmp_path, name):
    from mmseg_segmenter.datasets.check import check_dataset

    for folder in ('images', 'labels'):
        (tmp_path / folder).mkdir()
        for stem in 'ab':
            Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / f'{folder}/{stem}.png')
    for path in (tmp_path / 'images/a.png', tmp_path / 'labels/b.png'):
        path.write_bytes(IMAGES[name]())
    cfg = dataset_config(tmp_path)

    def check():
        report = check_dataset(cfg, workers=1, progress=False)
        return [f'{problem.kind} {" ".join(map(str, problem.files))}' for problem in report.problems]

    text = '\n'.join(with_little_memory(check))
    assert 'images/a.png' in text and 'labels/b.png' in text, text


def test_predictions_of_another_program(tmp_path):
    from types import SimpleNamespace

    (tmp_path / 'a.png').write_bytes(IMAGES['real.png']())
    read = folder_predictor(str(tmp_path), 3, False)
    with pytest.raises(UserError, match=r'a\.png has 25000x25000 pixels, expected at most 268,'):
        read(dict(data_samples=SimpleNamespace(get=lambda *_: 'a.jpg')))


def test_file_that_is_mostly_a_hole(tmp_path):
    path = tmp_path / 'a.png'
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    with path.open('r+b') as file:
        file.truncate(1 << 40)
    for name, read in readers(Path(path)).items():
        if name in ('page', 'read_header'):  # it limits what it reads; reads the header only
            continue
        with pytest.raises(UserError, match=r'1,099,511,627,776 bytes( or more)?, expected at most'):
            read()
