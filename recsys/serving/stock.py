"""What is out of stock: a list of items that are in no answer, changed while a server answers.

Why apart from requests: what is sold out is true for all callers at once, changes by the minute and is known to another
system than the one that asks for recommendations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import pydantic
from pydantic import BaseModel, ConfigDict, Field, model_validator

from recsys.errors import ConfigError, RequestError
from recsys.retrieval.rules import Id
from recsys.storage.beside import writing_beside

MAX_OUT: Final = 1_000_000
Ids = Annotated[list[Id], Field(max_length=MAX_OUT)]


class StockChange(BaseModel):
    """What POST /stock takes: ``out``, the whole list, or ``add`` and ``remove``, changes of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    out: Ids | None = None
    add: Ids | None = None
    remove: Ids | None = None

    @model_validator(mode="after")
    def _is_one_kind(self) -> StockChange:
        changes = self.add is not None or self.remove is not None
        if (self.out is not None) == changes:
            raise ValueError(
                'expected {"out": [items that are out of stock, all of them]}, or {"add": […], "remove": […]}'
            )
        return self


@dataclass(frozen=True)
class Stock:
    """The items that are out of stock; ``revision`` counts the changes."""

    out: frozenset[str] = frozenset()
    revision: int = 0
    changed: str = ""  # ISO time, UTC

    def after(self, change: StockChange) -> Stock:
        """The stock with a change made."""
        out = self.out | frozenset(change.add or ()) if change.out is None else frozenset(change.out)
        out -= frozenset(change.remove or ())
        return Stock(out, self.revision + 1, datetime.now(UTC).isoformat(timespec="seconds"))

    def said(self) -> dict[str, Any]:
        """In a few words, for people and callers."""
        return {"out": len(self.out), "revision": self.revision, "changed": self.changed}


def parse_change(content: Any) -> StockChange:
    """

    Raises
    ------
    RequestError
        it is no change.
    """
    if not isinstance(content, Mapping):
        raise RequestError(f"stock: expected an object, got {type(content).__name__}")
    try:
        return StockChange.model_validate(dict(content))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "unknown field; there are: add, out, remove"
        elif first["type"] == "string_type":
            message = "expected a string (ids are text: put numbers in quotes)"
        raise RequestError(f"stock: {path}{': ' if path else ''}{message}") from None


def read_stock(path: str, key: str) -> Stock:
    """The stock of a file; an empty one where there is none yet.

    Raises
    ------
    ConfigError
        the file holds something else; ``key`` is that of the configuration.
    """
    if not path or not Path(path).exists():
        return Stock()
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        change = parse_change({"out": content["out"]})
        return Stock(frozenset(change.out or ()), int(content.get("revision", 0)), str(content.get("changed", "")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RequestError) as error:
        raise ConfigError(
            f'{key}: {path} is no stock file ({type(error).__name__}: {error}); expected {{"out": [item ids]}}'
        ) from None


def write_stock(path: str, stock: Stock) -> None:
    """Write the file aside and rename it."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with writing_beside(target) as aside:
        content = {"out": sorted(stock.out), "revision": stock.revision, "changed": stock.changed}
        Path(aside).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
