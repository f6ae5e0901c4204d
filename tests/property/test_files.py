"""Damaged files: the right result or one line, and nothing else."""

import random

import pytest
from damage import mutate
from encoder_files import Source, convert_damaged, make_sources
from tiny_run import dataset_config, save_run, tiny_config, write_image
from torch import Tensor

from mmseg_segmenter.apis import Predictor
from mmseg_segmenter.apis.inputs import find_tasks
from mmseg_segmenter.apis.outputs import OutputSpec
from mmseg_segmenter.apis.pipeline import Pipeline
from mmseg_segmenter.datasets.check import check_dataset

pytest.importorskip('hypothesis')
from hypothesis import given
from hypothesis import strategies as st

SOURCES = make_sources()
# tests/faults/mutations.py runs a thousand of each, in processes of their own.
SEEDS = st.integers(0, 1 << 32)


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """Return the converted tensors of each format."""
    found = {}
    for name, source in SOURCES.items():
        folder = tmp_path_factory.mktemp('whole')
        for file, content in source.files.items():
            (folder / file).write_bytes(content)
        found[name] = source.convert(folder, tmp_path_factory.mktemp('out') / 'out')
    return found


@pytest.mark.parametrize('name', SOURCES)
@given(seed=SEEDS)
def test_converters(name: str, seed: int, whole: dict[str, dict[str, Tensor]], tmp_path_factory) -> None:
    source: Source = SOURCES[name]
    choose = random.Random(seed)
    file = choose.choice(list(source.files))
    folder = tmp_path_factory.getbasetemp() / 'damaged'
    convert_damaged(source, file, mutate(source.files[file], choose)[1], folder, whole[name])


@pytest.fixture(scope='module')
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp('run')
    return Pipeline(Predictor(save_run(folder, tiny_config()), device='cpu'), OutputSpec(str(folder / 'out')))


@given(seed=SEEDS, suffix=st.sampled_from(('.jpg', '.png', '.bmp', '.tif', '.webp')))
def test_images(seed: int, suffix: str, pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = write_image(tmp_path_factory.getbasetemp() / f'image{suffix}')
    path.write_bytes(mutate(path.read_bytes(), random.Random(seed))[1])
    (result,) = pipeline.run(find_tasks([str(path)]))
    assert result.status == 'done' or str(path) in result.error, result.error


@given(seed=SEEDS, damaged=st.sampled_from(('images', 'labels')))
def test_datasets(seed: int, damaged: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.getbasetemp() / 'data'
    for folder in ('images', 'labels'):
        write_image(root / folder / 'a.png')
    path = root / damaged / 'a.png'
    path.write_bytes(mutate(path.read_bytes(), random.Random(seed))[1])
    check_dataset(dataset_config(root), workers=1, progress=False)
