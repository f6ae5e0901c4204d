"""A pipe, a device, a socket or a folder in place of a file ends a validation, a test, a check or a prediction."""

import os
import signal
import socket
from pathlib import Path

import forked_training as training
import numpy as np
import pytest
from PIL import Image
from tiny_run import dataset_config

from mmseg_segmenter.apis.images import read_image
from mmseg_segmenter.apis.inputs import read_header
from mmseg_segmenter.datasets.check import check_dataset
from mmseg_segmenter.errors import UserError

MMSEG = dict(train_cfg__max_iters=1, train_cfg__val_interval=1)  # with the loaders of mmseg
OPTIONS = MMSEG | {
    f'val_dataloader__dataset__pipeline__{i}__type': kind for i, kind in enumerate(('LoadImage', 'LoadLabelMap'))
}


def a_socket(path):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


KINDS = {
    'pipe': os.mkfifo,
    'device': lambda path: path.symlink_to('/dev/zero'),
    'socket': a_socket,
    'folder': os.mkdir,
}


@pytest.fixture
def no_hang():
    """Fail after ten seconds instead of waiting for a writer forever."""

    def fail(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    ('folder', 'options'), [('images', OPTIONS), ('images', MMSEG), ('annotations', MMSEG)],
    ids=['LoadImage', 'LoadImageFromFile', 'LoadAnnotations'],
)  # fmt: skip
def test_validation(tmp_path, folder, options):
    config = training.make_config(tmp_path, num_images=5)
    path = min((tmp_path / 'data' / folder / 'validation').iterdir())
    path.unlink()
    os.mkfifo(path)
    (tmp_path / 'names.txt').write_text(path.stem)  # folders are searched for files only
    names = dict(val_dataloader__dataset__ann_file=str(tmp_path / 'names.txt'))
    assert training.wait(training.start(config, tmp_path / 'run', **options, **names), timeout=60) == 1
    assert f'{path} is a pipe or device, not a file' in (tmp_path / 'run.log').read_text().splitlines()[-1]


@pytest.mark.parametrize('kind', KINDS)
def test_check_and_prediction(tmp_path, monkeypatch, no_hang, kind):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    for folder in ('images', 'labels'):
        (tmp_path / folder).mkdir()
        KINDS[kind](Path(folder) / 'a.png')
        Image.fromarray(np.zeros((40, 40), np.uint8)).save(f'{folder}/b.png')
    with pytest.raises(UserError, match=r'images/a\.png (is not a regular file|not found)'):
        read_image('images/a.png')
    assert read_header('images/a.png') is None
    (tmp_path / 'names.txt').write_text('a\nb\n')
    cfg = dataset_config(tmp_path)
    cfg.train_dataloader.dataset.ann_file = 'names.txt'
    report = check_dataset(cfg, workers=1, progress=False)
    found = {problem.kind: str(problem.files) for problem in report.problems}
    expected = 'is a folder, not a file' if kind == 'folder' else 'is a pipe or device, not a file'
    assert expected in found['image_unreadable'] and expected in found['mask_unreadable']
