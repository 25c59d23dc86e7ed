"""Find the rows of an answer log that belong to deleted users: as the user, as a friend, or by a
stretch of history.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress

from recsys.privacy.footprints import SearchTargets
from recsys.privacy.unpacked import Part


class RowFinder:
    """Finds rows (JSON lines) of some users; a row that is cut off in the middle is searched as
    text.
    """

    def __init__(self, users: Iterable[str], traces: SearchTargets) -> None:
        self._users, self._traces = frozenset(users), traces
        forms = (
            json.dumps(user, ensure_ascii=ascii)[1:-1]
            for user in self._users
            for ascii in (True, False)
        )
        self._forms = {form.encode("utf-8", "surrogatepass") for form in forms}

    def __call__(self, rows: Sequence[bytes]) -> list[bool]:
        """Whether each row belongs to these users."""
        together = b"".join(rows)
        # first all rows at once: almost every batch has no trace, and parsing each row is slow
        if (
            self._traces.texts
            or any(form in together for form in self._forms)
            or self._is_found(together)
        ):
            return [self._is_named(row) or self._is_found(row) for row in rows]
        return [False] * len(rows)

    def _is_named(self, row: bytes) -> bool:
        """Whether the fields of a row name one of the users, or contain a stretch of a history."""
        with suppress(ValueError, TypeError, AttributeError):
            content = json.loads(row)
            request = content.get("request") or {}
            named = (
                content.get("user_id"),
                request.get("user_id"),
                *(request.get("friends") or ()),
            )
            if any(isinstance(name, str) and name in self._users for name in named):
                return True
            items = [event["item_id"] for event in request.get("history") or ()]
            return bool(items) and "history" in self._traces.found_in(
                Part("cells", items, "item_id")
            )
        return False

    def _is_found(self, text: bytes) -> bool:
        return any(self._traces.found_in(Part("bytes", text)))
