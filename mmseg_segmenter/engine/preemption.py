"""Learn from signals that a run should save and stop."""

import os
import signal
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any

# EX_TEMPFAIL of sysexits.h: try again later.
EXIT_CODE = 75
# SIGUSR1 is what Slurm sends ahead of the end with --signal=USR1@120.
SIGNALS = ('SIGTERM', 'SIGUSR1', 'SIGHUP', 'SIGINT')


class StopSignals:
    """Note SIGTERM, SIGUSR1, SIGHUP and the first SIGINT instead of dying of them.

    A second SIGINT that is not an echo of the first raises ``KeyboardInterrupt``. Signals that the process was started
    to ignore, as with nohup, stay ignored. Outside the main thread Python lets nobody set handlers.

    Attributes:
        received: name of the last signal, or ``None``.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._since = 0.0
        self._pid = os.getpid()
        self._previous: dict[int, Any] = {}

    def install(self) -> None:
        """Set the handlers."""
        if threading.current_thread() is not threading.main_thread() or self._previous:
            return
        for name in SIGNALS:
            number = getattr(signal, name, None)  # Windows lacks two
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._note)

    def restore(self) -> None:
        """Set the handlers that were there before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, _: FrameType | None) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        # A terminal and torchrun both pass a Ctrl-C on, milliseconds apart.
        if name == 'SIGINT' and self.received == 'SIGINT' and now - self._since > 1:
            raise KeyboardInterrupt
        if self.received is None:
            self._since = now
            if os.getpid() == self._pid:  # a forked worker has the handler too
                again = '; press Ctrl-C again to stop without saving' if name == 'SIGINT' else ''
                # not print(), which the signal may have interrupted
                with suppress(OSError):  # the terminal is gone
                    os.write(2, f'{name}: saving after this iteration, then stopping{again}\n'.encode())
        self.received = name
