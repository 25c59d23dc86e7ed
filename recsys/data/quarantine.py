"""Rows that cannot be used: kept with file, row and reason, counted, and too many of them stop the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys import schema
from recsys.data.destination import Destination
from recsys.data.histories import Array
from recsys.data.validate import HINTS
from recsys.errors import DataError
from recsys.storage.places import reaching
from recsys.storage.uris import within

DUPLICATE: Final = "duplicate"
UNKNOWN_ITEM: Final = "unknown item"
UNKNOWN_USER: Final = "unknown user"

QUARANTINE_SCHEMA: Final = pa.schema(
    [("file", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("raw", pa.string())]
)
_COLUMNS: Final = (schema.FILE, schema.ROW, schema.REASON, schema.RAW)
_NUM_EXAMPLES: Final = 3


def bad_rows(table: pa.Table, text_columns: list[str]) -> pa.Table:
    """The rows that have a reason, as the quarantine keeps them, in the order of file and row.

    Rows without their raw text (they were readable, and are refused for what other rows say) are written out of the
    given columns.
    """
    bad = table.filter(pc.is_valid(table.column(schema.REASON)))
    if bad.num_rows == 0:
        return QUARANTINE_SCHEMA.empty_table()
    bad = bad.sort_by([(schema.FILE, "ascending"), (schema.ROW, "ascending")])
    present = [name for name in text_columns if name in bad.column_names]
    columns = {name: bad.column(name).combine_chunks().cast(pa.string()) for name in present}
    cells = [pc.binary_join_element_wise(pa.scalar(name), column, "=") for name, column in columns.items()]
    written = join_present(cells, ", ")
    arrays = [bad.column(name).combine_chunks() for name in _COLUMNS]
    arrays[-1] = pc.coalesce(arrays[-1].cast(pa.string()), written)
    return pa.table(arrays, names=QUARANTINE_SCHEMA.names).cast(QUARANTINE_SCHEMA)


def join_present(columns: Sequence[pa.Array], separator: str) -> pa.Array:
    """The texts of every row that are not null, joined; null where all are.

    >>> join_present([pa.array(["a", None]), pa.array(["b", None])], "-").to_pylist()
    ['a-b', None]
    """
    joined = columns[0]
    for column in columns[1:]:  # pairwise: Arrow's own null_handling="skip" drops rows when given one column
        joined = pc.coalesce(pc.binary_join_element_wise(joined, column, separator), joined, column)
    return joined


def mark(table: pa.Table, is_bad: Array, reason: str) -> pa.Table:
    """The table with the reason on the bad rows that have none yet."""
    position = table.schema.get_field_index(schema.REASON)
    fresh = pc.if_else(pa.array(is_bad), reason, pa.scalar(None, pa.string()))
    merged = pc.coalesce(table.column(schema.REASON).combine_chunks().cast(pa.string()), fresh)
    return table.set_column(position, schema.REASON, merged)


class Quarantine:
    """The files ``quarantine/TABLE.parquet`` of a dataset while it is written; rows stream through, none is kept."""

    def __init__(self, destination: Destination, max_share: float) -> None:
        self._destination = destination
        self._max_share = max_share
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._examples: dict[str, list[dict[str, Any]]] = {}
        self.counts: dict[str, Counter[str]] = {}
        self.read: dict[str, int] = {}

    def start(self, table: str, read: int) -> None:
        """Note how many rows of a table were read, good and bad."""
        self.read[table] = read
        self.counts[table] = Counter()

    def add(self, table: str, bad: pa.Table) -> None:
        """Write some bad rows (see :func:`bad_rows`)."""
        if bad.num_rows == 0:
            return
        folder = self._destination.folder
        with reaching(folder.place, "write to"):
            if table not in self._writers:
                folder.make_folder(f"{folder.path}/quarantine")
                path = f"{folder.path}/quarantine/{table}.parquet"
                self._writers[table] = pq.ParquetWriter(path, QUARANTINE_SCHEMA, filesystem=folder.filesystem)
            self._writers[table].write_table(bad)
        for entry in pc.value_counts(bad.column("reason")).to_pylist():
            self.counts[table][entry["values"]] += entry["counts"]
        seen = self._examples.get(table, []) + bad.slice(0, _NUM_EXAMPLES).to_pylist()
        self._examples[table] = sorted(seen, key=lambda row: (row["file"] or "", row["row"] or 0))[:_NUM_EXAMPLES]

    def number(self, table: str) -> int:
        """Bad rows of a table so far."""
        return sum(self.counts[table].values())

    def check(self, table: str) -> None:
        """Stop when too many rows of a table are bad.

        Raises:
            DataError: with the counts, examples, the place of the bad rows, and the cure.
        """
        bad, read = self.number(table), self.read[table]
        if read == 0 or bad / read <= self._max_share:
            return
        self.close()
        kept = self._keep(table)
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in self.counts[table].most_common())
        lines = [f"  {row['file']}, row {row['row']}: {row['reason']}: {row['raw']}" for row in self._examples[table]]
        raise DataError(
            f"{bad:,} of {read:,} rows of {table} are bad ({bad / read:.2%}, at most {self._max_share:.2%} are "
            f"accepted): {reasons}; for example\n"
            + "\n".join(lines)
            + "".join(f"\n{reason}: {HINTS[reason]}" for reason in self.counts[table] if reason in HINTS)
            + f"\nall of them are in {kept}; fix the source, or raise data.quarantine.max_share"
        )

    def close(self) -> None:
        with reaching(self._destination.folder.place, "write to"):
            for writer in self._writers.values():
                writer.close()
        self._writers = {}

    def abandon(self) -> None:
        """Let go of the files of a prepare that failed: what cannot be written would complain once more."""
        for writer in self._writers.values():
            with suppress(Exception):
                writer.close()
            writer.is_open = False
        self._writers = {}

    def _keep(self, table: str) -> str:
        """Copy the bad rows out of the folder that is about to be removed."""
        source, target = self._destination.folder, self._destination.quarantine
        target.make_folder(target.path)
        target.filesystem.copy_file(f"{source.path}/quarantine/{table}.parquet", f"{target.path}/{table}.parquet")
        return within(self._destination.quarantine_root, f"{table}.parquet")
