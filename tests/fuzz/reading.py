"""Steps of every adapter's target: open the source, read every row, and check the rows against the
contract."""

from __future__ import annotations

import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.config import Section
from recsys.errors import UserError
from recsys.sources import open_source

KEYS = {
    "events": (schema.USER_ID, schema.ITEM_ID),
    "items": (schema.ITEM_ID,),
    "users": (schema.USER_ID,),
    "social": (schema.SRC_USER_ID, schema.DST_USER_ID),
    "knowledge": (schema.HEAD, schema.RELATION, schema.TAIL),
}


@cache
def place() -> Path:
    """A folder for the files of this process."""
    return Path(tempfile.mkdtemp(prefix="multigrain-fuzz-"))


def write(name: str, content: bytes) -> str:
    path = place() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def tables_of(source: Section, chunk_bytes: int | None = None) -> dict[str, pa.Table] | str:
    """Every table of a source, or the message of the refusal; any other exception is a finding,
    also one that a library catches and prints."""
    printed: list[Any] = []
    before, sys.unraisablehook = sys.unraisablehook, printed.append
    try:
        return _tables_of(source, chunk_bytes)
    finally:
        sys.unraisablehook = before
        assert not printed, f"printed and swallowed: {printed[0].exc_value!r}"


def _tables_of(source: Section, chunk_bytes: int | None) -> dict[str, pa.Table] | str:
    try:
        adapter = open_source(source)
        if chunk_bytes is not None:
            adapter.chunk_bytes = chunk_bytes  # type: ignore[attr-defined]
        adapter.fingerprint()
        tables = {}
        for name, pieces in adapter.pieces().items():
            blocks = [block for piece in pieces for block in piece.read()]
            assert all(block.schema.equals(blocks[0].schema) for block in blocks), (
                "blocks of several layouts"
            )
            tables[name] = pa.concat_tables(blocks) if blocks else pa.table({})
    except UserError as error:
        assert str(error).strip() and "Traceback" not in str(error)
        return str(error)
    for name, table in tables.items():
        hold(name, table)
    return tables


def hold(name: str, table: pa.Table) -> None:
    """Assert that a row is good with all its keys, or bad with a reason, and names its origin."""
    if table.num_columns == 0:
        return
    table.validate(full=True)  # text is UTF-8, offsets are in order
    good = table.filter(pc.is_null(table.column(schema.REASON)))
    for key in KEYS[name]:
        assert good.column(key).null_count == 0, f"a good row of {name} without {key}"
        assert not pc.any(pc.equal(good.column(key), "")).as_py(), (
            f"a good row of {name} with an empty {key}"
        )
    assert table.column(schema.FILE).null_count == table.column(schema.ROW).null_count == 0
    if name == "events":
        assert pc.all(pc.is_finite(good.column(schema.VALUE))).as_py() in (True, None)
        assert good.column(schema.EVENT_TYPE).null_count == 0
