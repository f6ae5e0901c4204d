import logging
from collections.abc import Iterator

import pytest
import torch
from mmengine.logging import MMLogger

import mmseg_segmenter  # noqa: F401  registers the classes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker('gpu'):  # keywords also hold the names of folders
            item.add_marker(pytest.mark.skip(reason='no GPU'))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope='session', autouse=True)
def _default_scope() -> None:
    from mmengine.registry import init_default_scope

    init_default_scope('mmseg')


@pytest.fixture
def capture_log() -> Iterator[list[logging.LogRecord]]:
    """Yield the records of mmengine's current logger, which does not propagate them."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[assignment, method-assign]
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)
