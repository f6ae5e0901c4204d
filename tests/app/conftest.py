from pathlib import Path

import pytest
from tiny_run import save_run, tiny_config

from mmseg_segmenter.apis import Predictor
from mmseg_segmenter.app import Models


@pytest.fixture(scope='session')
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the config and the checkpoint of a tiny model of two layers."""
    cfg = tiny_config(model__backbone__num_layers=2)
    return save_run(tmp_path_factory.mktemp('run'), cfg)


@pytest.fixture(scope='session')
def models(run_folder: Path) -> Models:
    """Return a tiny model, twice."""
    return Models([Predictor(run_folder), Predictor(run_folder)])
