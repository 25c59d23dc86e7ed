"""SIGINT, SIGTERM and SIGHUP end a command cleanly: contexts are closed, and the exit code names
the signal.

Why: a command holds a Ray cluster, an MLflow run and locks. By default, SIGTERM and SIGHUP leave
all of them behind, and Ray's own handlers end the process at once with a meaningless exit code.

A signal becomes an exception in the main thread. During the clean-up a second signal is ignored, so
that an impatient Ctrl-C does not interrupt it; the third one ends the process. A library may
swallow the exception, and the command would never end; so after half a minute the next signal
raises again.
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
    """A signal ended the command; ``code`` is the exit code, 128 plus the number of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


class Ending:
    """The first signal that arrived, if any.

    Ray turns the exception of a signal into others, such as ``SystemExit(1)`` or ``SystemError``,
    so every exception that leaves the block after a signal counts as that signal.
    """

    def __init__(self) -> None:
        self.number = 0
        self._num_seen, self._last = 0, 0.0

    def __call__(self, number: int, frame: Any) -> None:
        """Handle a signal."""
        now = time.monotonic()
        self._num_seen += 1
        if self._num_seen >= _PATIENCE and number == signal.SIGINT:
            os._exit(128 + number)
        if self.number and now - self._last < _ENDING_S:
            return
        self.number, self._last = self.number or number, now
        raise KeyboardInterrupt if number == signal.SIGINT else Ended(number)

    def again(self) -> None:
        """Send the signal again, because Python ignored its exception (in a weak reference's
        callback).
        """
        self._num_seen, self._last = self._num_seen - 1, -math.inf
        # later and from a thread: here we are inside the callback that swallows the exception
        timer = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), self.number))
        timer.daemon = True
        timer.start()


@contextmanager
def ending_in_order() -> Iterator[Ending]:
    """Turn signals into exceptions: ``KeyboardInterrupt`` for SIGINT, :class:`Ended` for the
    others.

    A signal that was ignored before stays ignored, as SIGHUP under ``nohup``.

    Yields
    ------
    Ending
        Which signal has arrived, if any.
    """
    end = Ending()
    if threading.current_thread() is not threading.main_thread():
        yield end
        return
    before = {number: signal.getsignal(number) for number in HANDLED}
    ignored_before = sys.unraisablehook

    def ignored(unraisable: Any) -> None:
        if end.number and issubclass(unraisable.exc_type, (KeyboardInterrupt, Ended)):
            end.again()
        else:
            ignored_before(unraisable)

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
    """Start Ray in this block: our handlers stay, and a closed terminal does not end its processes
    first.

    Ray sets a SIGTERM handler that exits at once. Its processes inherit the handling of SIGHUP; if
    they ended with the terminal, the driver could not clean up.
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
        # ``ray.init`` has no option for this
        ray_utils.set_sigterm_handler = lambda handler: None
    # a child process inherits an ignored signal, but not a handler
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, hangup if hangup is not None else signal.SIG_DFL)
        if ours:
            if set_by_ray is not None:
                ray_utils.set_sigterm_handler = set_by_ray
            signal.signal(signal.SIGTERM, terminate)
