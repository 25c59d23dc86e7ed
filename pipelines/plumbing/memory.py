"""The memory that this process may use."""

from __future__ import annotations

import re
from pathlib import Path


def available_memory() -> int | None:
    """Free bytes within the limits of a container; None if the system does not report them."""
    found = []
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        found += [
            int(kib) << 10 for kib in re.findall(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
        ]
    except OSError:
        pass
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        found += [max(0, int(limit) - used)] if limit.isdigit() else []
    except (OSError, ValueError):
        pass
    return min(found, default=None)
