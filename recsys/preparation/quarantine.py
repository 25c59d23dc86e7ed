"""Unused rows, kept with file, row and reason, and counted; too many bad rows stop the run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys import schema
from recsys.config import DataConfig
from recsys.data.histories import Array
from recsys.errors import DataError
from recsys.preparation.dataset_writer import DatasetWriter
from recsys.sources.validate import HINTS, NEGATIVE_WEIGHT, REPEATED_HEADER, SELF_LOOP, missing
from recsys.storage.filesystems import storage_errors
from recsys.storage.uris import within

DUPLICATE: Final = "duplicate"
UNKNOWN_ITEM: Final = "unknown item"
UNKNOWN_USER: Final = "unknown user"
HARMLESS: Final = (DUPLICATE, UNKNOWN_USER, SELF_LOOP, NEGATIVE_WEIGHT, REPEATED_HEADER)
"""Reasons of rows that are useless but no errors."""

QUARANTINE_SCHEMA: Final = pa.schema(
    [("file", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("raw", pa.string())]
)
_COLUMNS: Final = (schema.FILE, schema.ROW, schema.REASON, schema.RAW)
_NUM_EXAMPLES: Final = 3


def bad_rows(table: pa.Table, text_columns: list[str]) -> pa.Table:
    """The rows with a reason, in the format of the quarantine, sorted by file and row.

    Rows without raw text were readable and are refused because of other rows; their raw text is
    composed from the given columns.
    """
    bad = table.filter(pc.is_valid(table.column(schema.REASON)))
    if bad.num_rows == 0:
        return QUARANTINE_SCHEMA.empty_table()
    bad = bad.sort_by([(schema.FILE, "ascending"), (schema.ROW, "ascending")])
    present = [name for name in text_columns if name in bad.column_names]
    columns = {name: bad.column(name).combine_chunks().cast(pa.string()) for name in present}
    cells = [
        pc.binary_join_element_wise(pa.scalar(name), column, "=")
        for name, column in columns.items()
    ]
    written = join_present(cells, ", ")
    arrays = [bad.column(name).combine_chunks() for name in _COLUMNS]
    arrays[-1] = pc.coalesce(arrays[-1].cast(pa.string()), written)
    return pa.table(arrays, names=QUARANTINE_SCHEMA.names).cast(QUARANTINE_SCHEMA)


def join_present(columns: Sequence[pa.Array], separator: str) -> pa.Array:
    """The texts of every row joined, without nulls; null where all texts are null.

    >>> join_present([pa.array(["a", None]), pa.array(["b", None])], "-").to_pylist()
    ['a-b', None]
    """
    joined = columns[0]
    # pairwise: Arrow's null_handling="skip" drops rows of a single column
    for column in columns[1:]:
        joined = pc.coalesce(pc.binary_join_element_wise(joined, column, separator), joined, column)
    return joined


def mark(table: pa.Table, is_bad: Array, reason: str) -> pa.Table:
    """The table with the reason set on those bad rows that have no reason yet.

    Parameters
    ----------
    table : pa.Table
        Rows with a column of reasons.
    is_bad : array of bool
        Which rows are bad.
    reason : str
        The reason.
    """
    position = table.schema.get_field_index(schema.REASON)
    fresh = pc.if_else(pa.array(is_bad), reason, pa.scalar(None, pa.string()))
    merged = pc.coalesce(table.column(schema.REASON).combine_chunks().cast(pa.string()), fresh)
    return table.set_column(position, schema.REASON, merged)


class Quarantine:
    """Writes the unused rows of a dataset as they arrive; keeps none in memory.

    Bad rows (rows with an error) go to ``quarantine/TABLE.parquet``; too many of them stop the run.
    Harmless rows go to ``dropped/TABLE.parquet``: duplicates, and rows about ids without events.
    They are counted and reported, and stop the run only if ``data.duplicates`` or
    ``data.unknown_ids`` is ``refuse``.
    """

    def __init__(self, writer: DatasetWriter, config: DataConfig) -> None:
        self._writer = writer
        self._limit = config.quarantine.limit
        refused = {DUPLICATE: "data.duplicates"} if config.duplicates == "refuse" else {}
        self._refused = {
            **refused,
            **({UNKNOWN_USER: "data.unknown_ids"} if config.unknown_ids == "refuse" else {}),
        }
        harmless = {*HARMLESS, *({UNKNOWN_ITEM} if config.unknown_items == "drop" else ())}
        self._harmless = pa.array(sorted(harmless), pa.string())
        self._writers: dict[tuple[str, str], pq.ParquetWriter] = {}
        # (table, reason) → the first rows
        self._examples: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.counts: dict[str, Counter[str]] = {}
        self.dropped: dict[str, Counter[str]] = {}
        self.read: dict[str, int] = {}

    def start(self, table: str, read: int) -> None:
        """Begin a table: set how many of its rows were read, good and bad."""
        self.read[table] = read
        self.counts[table], self.dropped[table] = Counter(), Counter()

    def add(self, table: str, bad: pa.Table) -> None:
        """Write some bad or harmless rows (see :func:`bad_rows`)."""
        if bad.num_rows == 0:
            return
        harmless = pc.is_in(bad.column("reason"), value_set=self._harmless)
        for kind, rows in (
            ("dropped", bad.filter(harmless)),
            ("quarantine", bad.filter(pc.invert(harmless))),
        ):
            if rows.num_rows:
                self._write(kind, table, rows)

    def drop(self, table: str, counts: Mapping[str, int]) -> None:
        """Count rows that a filter leaves out; these rows are not written."""
        self.dropped[table].update(counts)

    def _write(self, kind: str, table: str, rows: pa.Table) -> None:
        folder, key = self._writer.folder, (kind, table)
        with storage_errors(folder.uri, "write to"):
            if key not in self._writers:
                folder.make_folder(f"{folder.path}/{kind}")
                path = f"{folder.path}/{kind}/{table}.parquet"
                self._writers[key] = pq.ParquetWriter(
                    path, QUARANTINE_SCHEMA, filesystem=folder.filesystem
                )
            self._writers[key].write_table(rows)
        counts = self.counts if kind == "quarantine" else self.dropped
        for entry in pc.value_counts(rows.column("reason")).to_pylist():
            reason = entry["values"]
            counts[table][reason] += entry["counts"]
            some = (
                rows.filter(pc.equal(rows.column("reason"), reason))
                .slice(0, _NUM_EXAMPLES)
                .to_pylist()
            )
            self._examples[table, reason] = _first(self._examples.get((table, reason), []) + some)

    def number(self, table: str) -> int:
        """Number of bad rows of a table so far."""
        return sum(self.counts[table].values())

    def describe(self, table: str) -> str:
        """One line for the console: rows read, rows quarantined, and rows dropped by reason."""
        line = f"read {table}: {self.read[table]:,} rows, {self.number(table):,} quarantined"
        dropped = {reason: count for reason, count in self.dropped[table].items() if count}
        return f"{line}, {sum(dropped.values()):,} dropped ({listed(dropped)})" if dropped else line

    def check(self, table: str) -> None:
        """Stop if too many rows of a table are bad, or if a setting refuses some rows.

        Raises
        ------
        DataError
            Rows are refused; the message has counts, examples, the path of the bad rows, and the
            cure.
        """
        for reason, key in self._refused.items():
            if count := self.dropped[table][reason]:
                self.close()
                examples = _shown(self._examples[table, reason])
                raise DataError(
                    f"{key} is refuse, and {count:,} of {self.read[table]:,} rows of {table} are"
                    f" refused ({reason}); for example\n{examples}\nremove them from the source, or"
                    f" set {key} to drop"
                )
        bad, read, limit = self.number(table), self.read[table], self._limit(table)
        if read == 0 or bad / read <= limit:
            return
        self.close()
        rescued = self._keep(table)
        rows = _first(
            [row for reason in self.counts[table] for row in self._examples[table, reason]]
        )
        hints = [f"\n{reason}: {HINTS[reason]}" for reason in self.counts[table] if reason in HINTS]
        if any(reason.startswith(missing("")) for reason in self.counts[table]):
            hints.append(
                "\nrows without an id, such as sales to guests, belong to no user or item; you can"
                " leave them out"
            )
        raise DataError(
            f"{bad:,} of {read:,} rows of {table} are bad ({bad / read:.2%}, at most {limit:.2%}"
            f" are accepted): {listed(self.counts[table])}; for"
            f" example\n{_shown(rows)}{''.join(hints)}\nall of them are in {rescued}; fix the"
            f" source{accepting(table, bad / read)}"
        )

    def close(self) -> None:
        """Close the files."""
        with storage_errors(self._writer.folder.uri, "write to"):
            for writer in self._writers.values():
                writer.close()
        self._writers = {}

    def abandon(self) -> None:
        """Close the files of a failed ``prepare``; ignores errors, since failed writes raise
        again.
        """
        for writer in self._writers.values():
            with suppress(Exception):
                writer.close()
            writer.is_open = False
        self._writers = {}

    def _keep(self, table: str) -> str:
        """Copy the bad rows out of the folder that will be removed; returns their path."""
        source, target = self._writer.folder, self._writer.quarantine
        target.make_folder(target.path)
        target.filesystem.copy_file(
            f"{source.path}/quarantine/{table}.parquet", f"{target.path}/{table}.parquet"
        )
        return within(self._writer.quarantine_root, f"{table}.parquet")


def accepting(table: str, share: float) -> str:
    """The setting that accepts the bad rows, for messages; empty where almost all rows are bad.

    >>> accepting("events", 0.2493), accepting("items", 0.011)
    (', or continue without them: set data.quarantine.max_share to {events: 0.3}', \
', or continue without them: set data.quarantine.max_share to {items: 0.02}')
    >>> accepting("events", 0.95)
    ''
    """
    digit = 10.0 ** math.floor(math.log10(share))
    accepted = math.ceil(share / digit) * digit
    return (
        f", or continue without them: set data.quarantine.max_share to {{{table}: {accepted:.6g}}}"
        * (accepted < 1)
    )


def listed(counts: Mapping[str, int]) -> str:
    """Reasons with their counts, the most frequent first.

    >>> listed({"duplicate": 2, "self-loop": 1000})
    'self-loop: 1,000, duplicate: 2'
    """
    ordered = sorted(counts.items(), key=lambda entry: -entry[1])
    return ", ".join(f"{reason}: {count:,}" for reason, count in ordered)


def _first(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first few rows, by file and row."""
    return sorted(rows, key=lambda row: (row["file"] or "", row["row"] or 0))[:_NUM_EXAMPLES]


def _shown(rows: list[dict[str, Any]]) -> str:
    return "\n".join(
        f"  {row['file']}, row {row['row']}: {row['reason']}: {row['raw']}" for row in rows
    )
