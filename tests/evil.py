"""What a malicious checkpoint holds."""

import os


class Evil:
    """Makes the folder `canary` when it is unpickled."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return os.mkdir, (self.canary,)
