"""Take over quarantined rows and attributes from an earlier dataset."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.dataset import PreparedDataset
from recsys.preparation.items import PROVENANCE, TEXT
from recsys.preparation.quarantine import DUPLICATE, UNKNOWN_ITEM, Quarantine


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


def with_earlier(table: pa.Table | None, features: pa.Table, key: str) -> pa.Table | None:
    """The table of items or users, extended by the earlier dataset's rows for ids that it lacks.

    Why: a catalogue lists the items of today, but histories contain older items, and their text
    still shows what a user likes.

    Parameters
    ----------
    table : pa.Table | None
        The table as it was read, with provenance; None: the source has no such table.
    features : pa.Table
        Features of the earlier dataset, in its dense order.
    key : str
        Name of the id column.
    """
    attributes = [name for name in features.column_names if name not in (key, TEXT, *PROVENANCE)]
    if not attributes:
        return table
    if table is None:
        rest, kinds = features.select([key, *attributes]), {}
    else:
        rest = features.filter(
            pc.invert(pc.is_in(features.column(key), value_set=table.column(key).combine_chunks()))
        )
        rest = rest.select([key, *(name for name in attributes if name in table.column_names)])
        kinds = {field.name: field.type for field in table.schema}
    for name in PROVENANCE:
        rest = rest.append_column(name, pa.nulls(rest.num_rows, kinds.get(name, pa.string())))
    if table is None:
        return rest
    rest = pa.table({name: rest.column(name).cast(kinds[name]) for name in rest.column_names})
    return pa.concat_tables([table, rest], promote_options="default")
