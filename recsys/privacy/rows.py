"""Which rows of a log of answers are of forgotten users: they asked, are named as a friend, or their history is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress

from recsys.privacy.opened import Part
from recsys.privacy.traces import Traces


class TheirRows:
    """Tells rows (JSON lines) of some users; a row that is cut off in the middle is searched as text."""

    def __init__(self, users: Iterable[str], traces: Traces) -> None:
        self._users, self._traces = frozenset(users), traces
        forms = (json.dumps(user, ensure_ascii=ascii)[1:-1] for user in self._users for ascii in (True, False))
        self._forms = {form.encode("utf-8", "surrogatepass") for form in forms}

    def __call__(self, rows: Sequence[bytes]) -> list[bool]:
        """Of every row, whether it is theirs."""
        together = b"".join(rows)
        if not any(form in together for form in self._forms) and not self._is_found(together):
            return [False] * len(rows)
        return [self._names_one(row) or self._is_found(row) for row in rows]

    def _names_one(self, row: bytes) -> bool:
        if not any(form in row for form in self._forms):
            return False
        with suppress(ValueError, TypeError, AttributeError):
            content = json.loads(row)
            request = content.get("request") or {}
            named = (content.get("user_id"), request.get("user_id"), *(request.get("friends") or ()))
            return any(isinstance(name, str) and name in self._users for name in named)
        return False

    def _is_found(self, text: bytes) -> bool:
        return any(self._traces.found_in(Part("bytes", text)))
