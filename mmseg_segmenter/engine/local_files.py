"""Let mmseg's own loaders refuse what is not a file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend
from mmengine.fileio.io import backend_instances

from ..files import check_regular


class RegularFiles(LocalBackend):
    """Read local files, and nothing else."""

    def get(self, filepath: str | Path) -> bytes:
        """Return the content of a file.

        Raises:
            BadSampleError: it is a folder, or a pipe, which would never end. The message begins with the path.
        """
        check_regular(str(filepath))
        return super().get(filepath)


@contextmanager
def pipes_refused() -> Iterator[None]:
    """Let ``LoadImageFromFile`` and ``LoadAnnotations`` fail on a pipe, where they wait forever."""
    _use(RegularFiles)
    try:
        yield
    finally:
        _use(LocalBackend)


def _use(backend: type[LocalBackend]) -> None:
    register_backend('local', backend, force=True, prefixes='')
    for key in [key for key, one in backend_instances.items() if isinstance(one, LocalBackend)]:
        del backend_instances[key]  # mmengine keeps an instance for each set of arguments
