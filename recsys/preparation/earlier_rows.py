"""Take over quarantined rows and attributes from an earlier dataset."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.data.dataset import PreparedDataset
from recsys.errors import DataError
from recsys.preparation.items import PROVENANCE
from recsys.preparation.quarantine import DUPLICATE, UNKNOWN_ITEM, Quarantine
from recsys.values.arrow_types import common_type


def carry_events(quarantine: Quarantine, earlier: PreparedDataset, again: bool) -> None:
    """Take over the unused rows of events (quarantined or dropped) and the number of rows read.

    Rows about unknown items are not taken over, because they are checked again.

    Parameters
    ----------
    quarantine : Quarantine
        Quarantine of the new dataset.
    earlier : PreparedDataset
        The dataset to append to.
    again : bool
        Whether all events pass the filters and the check for duplicates again, which counts them
        again.
    """
    checked_again = [UNKNOWN_ITEM, *([DUPLICATE] if again else [])]
    for kind, counts in (
        ("quarantine", earlier.manifest.quarantined),
        ("dropped", earlier.manifest.dropped),
    ):
        of_events = dict(counts.get("events", {}))
        if not of_events:
            continue
        written = earlier.rows_aside(kind, "events")
        if written is not None:
            for reason in pc.unique(written.column("reason")).to_pylist():
                of_events.pop(reason, None)
            kept = pc.invert(
                pc.is_in(written.column("reason"), value_set=pa.array(checked_again, pa.string()))
            )
            quarantine.add("events", written.filter(kept))
        # reasons that are counted but whose rows are not written
        if kind == "dropped" and not again:
            quarantine.drop("events", of_events)
    quarantine.read["events"] += earlier.manifest.read.get("events", 0)


def with_earlier(table: pa.Table | None, before: pa.Table, key: str) -> tuple[pa.Table | None, str]:
    """The table of items or users, extended by the earlier dataset's rows for ids that it lacks,
    and a note on columns that it lacks.

    Why: a catalogue lists the items of today, but histories contain older items, and their text
    still shows what a user likes. A model may read a column that today's file lacks: the column
    stays, and is empty in today's rows.

    Parameters
    ----------
    table : pa.Table | None
        The table as it was read, with provenance; None: the source has no such table.
    before : pa.Table
        The same table of the earlier dataset, in its dense order.
    key : str
        Name of the id column.

    Raises
    ------
    DataError
        A column has another type than before, and no type holds the values of both.
    """
    attributes = [name for name in before.column_names if name not in (key, *PROVENANCE)]
    before = before.select([key, *attributes])
    if table is None:
        return (_with_provenance(before, {}) if attributes else None), ""
    ids = table.column(key).combine_chunks()
    before = before.filter(pc.invert(pc.is_in(before.column(key), value_set=ids)))
    before = _with_provenance(before, {field.name: field.type for field in table.schema})
    lost = [name for name in attributes if name not in table.column_names]
    for name in lost:
        table = table.append_column(name, pa.nulls(table.num_rows, before.column(name).type))
    noun = key.removesuffix("_id")
    note = (
        f"the table of {noun}s lacks {', '.join(lost)}, which the earlier dataset has; they are"
        f" empty for the {noun}s of today's table, and unchanged for the others"
    )
    if before.num_rows:
        for name in (key, *attributes):
            table, before = _of_one_type(table, before, name)
        table = pa.concat_tables([table, before], promote_options="default")
    return table, note if lost else ""


def _with_provenance(rows: pa.Table, kinds: Mapping[str, pa.DataType]) -> pa.Table:
    for name in PROVENANCE:
        rows = rows.append_column(name, pa.nulls(rows.num_rows, kinds.get(name, pa.string())))
    return rows


def _of_one_type(table: pa.Table, before: pa.Table, name: str) -> tuple[pa.Table, pa.Table]:
    """Both tables with one type of a column: files of two days may have two."""
    kinds = [rows.column(name).type for rows in (table, before)]
    kind = common_type(*kinds)
    try:
        if kind is not None:
            return _cast(table, name, kind), _cast(before, name, kind)
    except pa.ArrowException:  # a number beyond the common type, or a type that Arrow cannot cast
        pass
    noun = "items" if schema.ITEM_ID in table.column_names else "users"
    raise DataError(
        f"the column {name} of {noun} has the type {kinds[0]}, and {kinds[1]} in the earlier"
        " dataset; no type holds both. Write the column as before, or under another name"
    )


def _cast(rows: pa.Table, name: str, kind: pa.DataType) -> pa.Table:
    column = rows.column(name)
    if column.type == kind:
        return rows
    is_exact = not pa.types.is_floating(kind)  # whole numbers above 2^53 are rounded
    position = rows.column_names.index(name)
    return rows.set_column(position, name, column.cast(kind, safe=is_exact))
