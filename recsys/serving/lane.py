"""Turns of large calls: one slice of one of them at a time, whatever their number.

Why: slices that all wait in the queue of small calls would be answered in one batch with them, which takes as long as
the calls in one piece. With turns a small call waits for one slice at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Lane:
    """First come, first served, slice by slice."""

    def __init__(self) -> None:
        self._lock: asyncio.Lock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @asynccontextmanager
    async def turn(self, is_large: bool) -> AsyncIterator[None]:
        """The block of a large call runs when its turn comes; that of a small one at once."""
        if not is_large:
            yield
            return
        loop = asyncio.get_running_loop()
        if self._lock is None or self._loop is not loop:
            self._lock, self._loop = asyncio.Lock(), loop
        async with self._lock:
            yield
