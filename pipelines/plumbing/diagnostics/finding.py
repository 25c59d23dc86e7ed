"""One finding of `recsys doctor`, and the form of a check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from recsys.config import Config

State = Literal["ok", "warn", "fail"]
GIB: Final = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One line: the name of the check, its state, what was found, and the fix."""

    name: str
    state: State
    found: str
    cure: str = ""


Check = Callable[["Config | None"], Iterator[Finding]]


def fix_if(condition: bool, text: str) -> str:
    """The text of a fix where there is a problem; empty otherwise."""
    return text if condition else ""
