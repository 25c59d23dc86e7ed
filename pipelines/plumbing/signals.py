"""SIGINT, SIGTERM and SIGHUP end a command in order: contexts are left, then the exit code says which signal it was.

Why: a command holds a Ray cluster, an MLflow run and locks. The default of SIGTERM and SIGHUP leaves all of them
behind, and Ray's own handlers end the process in the middle, with a code that says nothing.

A signal is an exception in the main thread. While what it ends is put in order, further ones are ignored, so that an
impatient second Ctrl-C leaves nothing behind; the third one ends the process. An exception that a library swallows
would leave a command that nothing ends: after half a minute the next signal is an exception again.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

HANDLED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE: Final = 3
_ENDING_S: Final = 30.0
_AGAIN_S: Final = 0.1


class Ended(SystemExit):
    """A signal has ended the command; ``code`` is the exit code, 128 and the number of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


class Ending:
    """The first signal that has come, if any.

    Ray turns the exception of a signal into others, such as ``SystemExit(1)`` or ``SystemError``: whatever leaves the
    block after a signal is the signal's.
    """

    def __init__(self) -> None:
        self.number = 0
        self._num_seen, self._last = 0, 0.0

    def __call__(self, number: int, frame: Any) -> None:
        """The handler."""
        now = time.monotonic()
        self._num_seen += 1
        if self._num_seen >= _PATIENCE and number == signal.SIGINT:
            os._exit(128 + number)
        if self.number and now - self._last < _ENDING_S:
            return
        self.number, self._last = self.number or number, now
        raise KeyboardInterrupt if number == signal.SIGINT else Ended(number)

    def again(self) -> None:
        """Send the signal once more: Python ignored its exception, as it does in the call of a weak reference."""
        self._num_seen, self._last = self._num_seen - 1, -math.inf
        timer = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), self.number))
        timer.daemon = True
        timer.start()


@contextmanager
def ending_in_order() -> Iterator[Ending]:
    """Signals as exceptions: ``KeyboardInterrupt`` for SIGINT, :class:`Ended` for the others.

    A signal that was ignored before, as SIGHUP is under ``nohup``, stays ignored.
    """
    end = Ending()
    if threading.current_thread() is not threading.main_thread():
        yield end
        return
    before = {number: signal.getsignal(number) for number in HANDLED}
    ignored_before = sys.unraisablehook

    def ignored(told: Any) -> None:
        if end.number and issubclass(told.exc_type, (KeyboardInterrupt, Ended)):
            end.again()
        else:
            ignored_before(told)

    sys.unraisablehook = ignored
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, end)
    try:
        yield end
    finally:
        sys.unraisablehook = ignored_before
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


@contextmanager
def kept_from_ray() -> Iterator[None]:
    """Start Ray in the block: our handlers stay, and its processes do not die of a closed terminal before we do.

    Ray sets a handler of SIGTERM that exits at once. What it starts inherits how SIGHUP is handled; were it to end with
    the terminal, the driver could not put anything in order.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    import ray._private.utils as ray_utils

    hangup = signal.getsignal(signal.SIGHUP)
    terminate = signal.getsignal(signal.SIGTERM)
    ours = terminate not in (signal.SIG_DFL, None)
    set_by_ray = getattr(ray_utils, "set_sigterm_handler", None)
    if ours and set_by_ray is not None:
        ray_utils.set_sigterm_handler = lambda handler: None
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, hangup if hangup is not None else signal.SIG_DFL)
        if ours:
            if set_by_ray is not None:
                ray_utils.set_sigterm_handler = set_by_ray
            signal.signal(signal.SIGTERM, terminate)
