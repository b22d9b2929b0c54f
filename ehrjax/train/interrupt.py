"""SIGINT and SIGTERM as a request to stop after the current step, instead of a stack trace and lost work."""

import os
import signal
import threading
from types import FrameType


class Interrupted(Exception):
    """Training was asked to stop and has saved a checkpoint. `exit_code` is the shell's: 130 SIGINT, 143 SIGTERM."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum
        self.exit_code = 128 + signum


class StopRequest:
    """Context manager: the first SIGINT or SIGTERM sets `signum`; a second one acts as it would have without us."""

    def __init__(self):
        self.signum: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        # Python allows handlers in the main thread only; elsewhere signals stay as they are.
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        del frame
        self.signum = signum
        # os.write, because a signal may arrive in the middle of a print.
        name = signal.Signals(signum).name
        os.write(2, f"\n{name}: finishing this step, then saving a checkpoint (repeat to stop at once).\n".encode())
        self.__exit__()
