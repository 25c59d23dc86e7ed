"""Paired comparisons of two runs, computed one by one in the background and kept while the
dashboard runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from recsys.config import redact
from recsys.errors import MultigrainError
from recsys.ui.run_files import ComparisonShape, content_of
from recsys.ui.runs import Run

Comparing = Callable[[str, str], Mapping[str, Any]]  # two run folders → the content of compare.json
_WAITING: Final = 3  # maximum number of waiting and running comparisons
_KEPT: Final = 64


@dataclass
class Comparison:
    """Two runs on the same test users: the result, an error, or neither while it is computed."""

    record: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def is_made(self) -> bool:
        """Whether the result or an error is there."""
        return bool(self.record or self.problem)


class Comparisons:
    """Compares runs with ``compare``, which ranks the test split with both models and writes
    nothing.
    """

    def __init__(self, compare: Comparing) -> None:
        self._compare = compare
        self._lock, self._turn = threading.Lock(), threading.Lock()
        self._found: dict[tuple[str, str], Comparison] = {}

    def of(self, first: Run, second: Run) -> Comparison:
        """The comparison of two runs; the first call starts it, also after an error was shown."""
        stored = _stored(first, second)
        if stored:
            return Comparison(stored)
        key = (
            f"{first.folder} {_identity(first.metrics)}",
            f"{second.folder} {_identity(second.metrics)}",
        )
        with self._lock:
            found = self._found.get(key)
            if found is None:
                if sum(not one.is_made for one in self._found.values()) >= _WAITING:
                    return Comparison(
                        problem="Other comparisons are running; try again when they are done."
                    )
                for old in [key for key, one in self._found.items() if one.is_made][
                    : max(0, len(self._found) - _KEPT)
                ]:
                    del self._found[old]
                found = self._found[key] = Comparison()
                folders = str(first.folder), str(second.folder)
                threading.Thread(target=self._make, args=(found, *folders), daemon=True).start()
            shown = replace(found)  # a page must not change while it is rendered
            if shown.problem:
                del self._found[key]  # the cause may be gone at the next call
            return shown

    def _make(self, comparison: Comparison, first: str, second: str) -> None:
        try:
            # one at a time, because each ranks a whole test split
            with self._turn:
                comparison.record = self._compare(first, second)
        except MultigrainError as error:
            comparison.problem = str(error)
        except Exception as error:  # the page must show the failure, not wait forever
            comparison.problem = (
                f"The comparison failed: {type(error).__name__}: {redact(str(error))}"
            )


def _stored(first: Run, second: Run) -> Mapping[str, Any]:
    """The result of ``recsys compare`` in the first run's folder, if it belongs to these two
    evaluations.
    """
    if first.folder is None:
        return {}
    record = content_of(first.folder / "compare.json", ComparisonShape)
    compared = [_identity(record.get(side, {})) for side in ("first", "second")]
    return record if compared == [_identity(first.metrics), _identity(second.metrics)] else {}


def _identity(content: Mapping[str, Any]) -> list[Any]:
    """The weights, and the settings that decide what is measured."""
    return [content.get("model_sha256"), content.get("settings_sha256")]
