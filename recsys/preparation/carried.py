"""What a dataset that continues another one takes over from it beside its events: rows of quarantine, attributes."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.dataset import PreparedDataset
from recsys.preparation.items import PROVENANCE, TEXT
from recsys.preparation.quarantine import DUPLICATE, UNKNOWN_ITEM, Quarantine


def carry_events(quarantine: Quarantine, earlier: PreparedDataset, again: bool) -> None:
    """Take over the rows of events that were read before and are not used, and how many were read.

    Rows about an item that was unknown are judged again, so they are not among them.

    Parameters
    ----------
    quarantine : Quarantine
        Of the dataset that is written.
    earlier : PreparedDataset
        The dataset that is appended to.
    again : bool
        Whether all events pass the filters and are compared again, which counts what they leave out anew.
    """
    judged_again = [UNKNOWN_ITEM, *([DUPLICATE] if again else [])]
    for kind, counts in (("quarantine", earlier.manifest.quarantined), ("dropped", earlier.manifest.dropped)):
        of_events = dict(counts.get("events", {}))
        if not of_events:
            continue
        written = earlier.rows_aside(kind, "events")
        if written is not None:
            for reason in pc.unique(written.column("reason")).to_pylist():
                of_events.pop(reason, None)
            kept = pc.invert(pc.is_in(written.column("reason"), value_set=pa.array(judged_again, pa.string())))
            quarantine.add("events", written.filter(kept))
        if kind == "dropped" and not again:  # those that are counted and not written
            quarantine.drop("events", of_events)
    quarantine.read["events"] += earlier.manifest.read.get("events", 0)


def with_earlier(table: pa.Table | None, features: pa.Table, key: str) -> pa.Table | None:
    """The table of items or users, then the ids that it lacks with what an earlier dataset says of them.

    Why: a catalogue lists what is sold today, and the histories hold what was sold before, whose text still tells
    what a user likes.

    Parameters
    ----------
    table : pa.Table | None
        As it was read, with provenance; None: there is none now.
    features : pa.Table
        Of the earlier dataset, in its dense order.
    key : str
        The id.
    """
    told = [name for name in features.column_names if name not in (key, TEXT, *PROVENANCE)]
    if not told:
        return table
    if table is None:
        rest, kinds = features.select([key, *told]), {}
    else:
        rest = features.filter(pc.invert(pc.is_in(features.column(key), value_set=table.column(key).combine_chunks())))
        rest = rest.select([key, *(name for name in told if name in table.column_names)])
        kinds = {field.name: field.type for field in table.schema}
    for name in PROVENANCE:
        rest = rest.append_column(name, pa.nulls(rest.num_rows, kinds.get(name, pa.string())))
    if table is None:
        return rest
    rest = pa.table({name: rest.column(name).cast(kinds[name]) for name in rest.column_names})
    return pa.concat_tables([table, rest], promote_options="default")
