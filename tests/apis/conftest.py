from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_run import save_run, tiny_config


@pytest.fixture(scope='session')
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the config and the checkpoint of a tiny model."""
    return save_run(tmp_path_factory.mktemp('run'), tiny_config())


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a config and a checkpoint: changes of the config by keyword."""

    def make(name: str = 'run', meta: dict[str, Any] | None = None, **changes: Any) -> Path:
        return save_run(tmp_path / name, tiny_config(**changes), meta)

    return make
