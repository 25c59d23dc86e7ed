"""The stock: a list of items that no answer may contain; it can change while a server answers.

Why separate from requests: items are sold out for all callers at once, this changes by the minute,
and the system that knows it is usually not the one that asks for recommendations.
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

from recsys.errors import ConfigError, RequestError, valid_instead
from recsys.retrieval.rules import Id
from recsys.storage.beside import atomic_write

MAX_OUT: Final = 1_000_000
Ids = Annotated[list[Id], Field(max_length=MAX_OUT)]


class StockChange(BaseModel):
    """The body of POST /stock: ``out``, the whole list, or ``add`` and ``remove``, changes to the
    list.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    out: Ids | None = None
    add: Ids | None = None
    remove: Ids | None = None

    @model_validator(mode="after")
    def _is_one_kind(self) -> StockChange:
        changes = self.add is not None or self.remove is not None
        if (self.out is not None) == changes:
            raise ValueError(
                'expected either {"out": [all item ids that are out of stock]}, or {"add": [item'
                ' ids], "remove": [item ids]}'
            )
        return self


@dataclass(frozen=True)
class Stock:
    """The items that are out of stock; ``revision`` counts the changes."""

    out: frozenset[str] = frozenset()
    revision: int = 0
    changed: str = ""  # ISO time, UTC

    def after(self, change: StockChange) -> Stock:
        """The stock after a change."""
        out = (
            self.out | frozenset(change.add or ()) if change.out is None else frozenset(change.out)
        )
        out -= frozenset(change.remove or ())
        return Stock(out, self.revision + 1, datetime.now(UTC).isoformat(timespec="seconds"))

    def to_json(self) -> dict[str, Any]:
        """A summary for replies: number of items, revision and time of the change."""
        return {"out": len(self.out), "revision": self.revision, "changed": self.changed}


def parse_change(content: Any) -> StockChange:
    """Check the body of POST /stock.

    Raises
    ------
    RequestError
        The body is not a change of the stock.
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
            message = f"unknown field; {valid_instead(path, StockChange.model_fields)}"
        elif first["type"] == "string_type":
            message = "expected a string (ids are strings: put numbers in quotes)"
        raise RequestError(f"stock: {path}{': ' if path else ''}{message}") from None


def read_stock(path: str, key: str) -> Stock:
    """The stock of a file; an empty stock where the file does not exist.

    Parameters
    ----------
    path : str
        The file; empty: none.
    key : str
        Configuration key that names the file, for the message.

    Raises
    ------
    ConfigError
        The file is not a stock file.
    """
    if not path or not Path(path).exists():
        return Stock()
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        change = parse_change({"out": content["out"]})
        return Stock(
            frozenset(change.out or ()),
            int(content.get("revision", 0)),
            str(content.get("changed", "")),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RequestError) as error:
        raise ConfigError(
            f"{key}: {path} is not a stock file ({type(error).__name__}: {error}); expected"
            ' {"out": [item ids]}'
        ) from None


def write_stock(path: str, stock: Stock) -> None:
    """Write the stock to a temporary file and rename it."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as aside:
        content = {"out": sorted(stock.out), "revision": stock.revision, "changed": stock.changed}
        Path(aside).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
