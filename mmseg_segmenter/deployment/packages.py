"""Packages of the extras."""

from importlib.util import find_spec

from ..errors import MissingPackageError


def require(extra: str, *packages: str) -> None:
    """Check that the packages of an extra are installed.

    Args:
        extra: name of the extra.
        packages: modules that are needed.

    Raises:
        MissingPackageError: names the missing ones and the command that installs them.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise MissingPackageError(f"{' and '.join(missing)} not installed: run pip install 'mmseg_segmenter[{extra}]'")
