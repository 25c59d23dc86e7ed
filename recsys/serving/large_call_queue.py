"""A queue for large calls: one slice of one large call runs at a time, however many there are.

Why: if the slices waited in the queue of small calls, they would be answered in one batch together
with them, which takes as long as the large calls in one piece. With this queue a small call waits
for one slice at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class LargeCallQueue:
    """First come, first served, one slice at a time."""

    def __init__(self) -> None:
        self._lock: asyncio.Lock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @asynccontextmanager
    async def turn(self, is_large: bool) -> AsyncIterator[None]:
        """Run the block of a large call when its turn comes, and the block of a small
        call at once.
        """
        if not is_large:
            yield
            return
        loop = asyncio.get_running_loop()
        # a lock belongs to one event loop, and a service may live longer than a loop
        if self._lock is None or self._loop is not loop:
            self._lock, self._loop = asyncio.Lock(), loop
        async with self._lock:
            yield
