"""A local Ray without the processes of its dashboard, which no command here uses.

Why: Ray starts an API server and an agent for the dashboard also with ``include_dashboard=False``.
They import hundreds of modules, and Ray waits for them: more than half of its start, and 70 MB.
Ray has no option for this, only its own test whether the dashboard's dependencies are installed, so
this replaces that test and the start of the API server during ``ray.init``. If another version of
Ray has other names, Ray starts as usual.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_dashboard() -> Iterator[None]:
    """Start a local Ray in this block."""
    from ray._private import node, utils

    def nothing(self: Any, **_: Any) -> None:
        self._webui_url = ""

    replaced = [
        (utils, "get_dashboard_dependency_error", lambda: ImportError("no dashboard is wanted")),
        (node.Node, "start_api_server", nothing),
    ]
    known = [
        (owner, name, getattr(owner, name)) for owner, name, _ in replaced if name in vars(owner)
    ]
    try:
        if len(known) == len(replaced):
            for owner, name, value in replaced:
                setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in known:
            setattr(owner, name, value)
