"""An object that a malicious checkpoint may contain."""

import os
from collections.abc import Callable
from pathlib import Path


class Evil:
    """Create the folder `canary` when unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.canary,)
