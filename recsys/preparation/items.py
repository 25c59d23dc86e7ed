"""Tables of items: features, text and numbers of interactions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.config import TextConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array
from recsys.errors import ConfigError, choices, valid_instead
from recsys.preparation.dataset_writer import Folder
from recsys.preparation.event_roles import SPLITS
from recsys.preparation.quarantine import DUPLICATE, join_present, mark
from recsys.values.arrow_types import is_string, is_variable_list

TEXT: Final = "text"
OWN_TEXT: Final = "items/own_text.parquet"
PROVENANCE: Final = (schema.FILE, schema.ROW, schema.ORDER, schema.REASON, schema.RAW)
_IDS: Final = (schema.ITEM_ID, schema.ENTITY_ID)


def text_fields(
    table: pa.Table | None, wanted: Sequence[str] | None, media: Sequence[str] = ()
) -> list[str]:
    """The columns of an item's text: the wanted ones, or (None) all columns of strings or lists of
    strings except those of ``media``, whose texts are vectors or paths.

    Parameters
    ----------
    table : pa.Table or None
        The items table; None: the source has none.
    wanted : Sequence[str] or None
        The configured columns; None: choose them.
    media : Sequence[str]
        Columns of media.

    Raises
    ------
    ConfigError
        A wanted column does not exist.
    """
    columns = (
        []
        if table is None
        else [name for name in table.column_names if name not in (*_IDS, *PROVENANCE)]
    )
    unknown = [name for name in wanted or () if name not in columns]
    if unknown:
        none = "none, as there is no items table"
        raise ConfigError(
            f"data.text.fields: {', '.join(unknown)} not among the columns of items;"
            f" {valid_instead(unknown[0], columns, 'columns', none=none)}"
        )
    if wanted is not None or table is None:
        return list(wanted or ())
    return [
        name for name in columns if name not in media and _is_text(table.schema.field(name).type)
    ]


def _is_text(kind: pa.DataType) -> bool:
    if is_variable_list(kind):
        kind = kind.value_type
    return is_string(kind)


def unique_rows(table: pa.Table, key: str) -> tuple[pa.Table, pa.Table]:
    """The first good row of every id, by file and row; and all rows, with repeats marked as
    duplicates.
    """
    table = table.sort_by([(schema.FILE, "ascending"), (schema.ROW, "ascending")]).combine_chunks()
    good_rows = np.flatnonzero(np.asarray(pc.is_null(table.column(schema.REASON))))
    codes = np.asarray(
        table.column(key).combine_chunks().dictionary_encode().indices.fill_null(-1)
    )[good_rows]
    is_first = np.zeros(table.num_rows, dtype=bool)
    is_first[good_rows[np.unique(codes, return_index=True)[1]]] = True
    return table.filter(pa.array(is_first)), mark(table, ~is_first, DUPLICATE)


def align(table: pa.Table | None, ids: pa.Array, key: str) -> pa.Table:
    """The table of items or users in dense order, without provenance; nulls for missing ids.

    Parameters
    ----------
    table : pa.Table or None
        The table of items or users; None: the source has none.
    ids : pa.Array
        External ids in dense order.
    key : str
        Name of the id column.
    """
    if table is None:
        return pa.table({key: ids})
    rows = pc.index_in(ids, value_set=table.column(key))
    names = [name for name in table.column_names if name not in (*PROVENANCE, key)]
    return pa.table({key: ids, **{name: table.column(name).take(rows) for name in names}})


def compose_text(
    features: pa.Table, fields: Sequence[str], terms: pa.Table | None, label: str
) -> pa.Array:
    """One text per item: the fields joined with ". ", then the terms as "LABEL: a, b", or null.

    Parameters
    ----------
    features : pa.Table
        Features of the items in dense order.
    fields : Sequence[str]
        Columns of ``features``.
    terms : pa.Table | None
        Columns ``item`` (dense id) and ``terms``; None: no terms.
    label : str
        Name of the column that the terms come from.
    """
    pieces = [_as_text(features.column(name)) for name in fields]
    if terms is not None and terms.num_rows:
        rows = pc.index_in(
            pa.array(np.arange(features.num_rows, dtype=np.int32)), value_set=terms.column("item")
        )
        labelled = pc.binary_join_element_wise(pa.scalar(f"{label}: "), terms.column("terms"), "")
        pieces.append(labelled.combine_chunks().take(rows))
    if not pieces:
        return pa.nulls(features.num_rows, pa.string())
    return join_present(pieces, ". ")


def _as_text(column: pa.ChunkedArray) -> pa.Array:
    """The trimmed text of every row; lists are joined with ", ", empty text is null."""
    array = column.combine_chunks()
    if is_variable_list(array.type):
        if not pa.types.is_string(array.type.value_type):
            array = array.cast(pa.list_(pa.string()))
        array = pc.binary_join(array, ", ")
    trimmed = pc.utf8_trim_whitespace(array.cast(pa.string()))
    return pc.if_else(pc.equal(trimmed, ""), None, trimmed)


def text_groups(
    table: pa.Table | None, config: TextConfig, media: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Group → its item columns, in the order of the configuration; one group "text" if no groups
    are configured.

    A group can also name the event column.

    Parameters
    ----------
    table : pa.Table or None
        The items table; None: the source has none.
    config : TextConfig
        The section ``data.text``.
    media : Sequence[str]
        Columns of media.

    Raises
    ------
    ConfigError
        A column does not exist, or no group has the event column.
    """
    if not config.groups:
        return {
            TEXT: [
                *text_fields(table, config.fields, media),
                *([config.event_column] if config.event_column else []),
            ]
        }
    named = [name for fields in config.groups.values() for name in fields]
    text_fields(table, [name for name in named if name != config.event_column])
    if config.event_column and config.event_column not in named:
        raise ConfigError(
            f"data.text.groups: no group has the event column {config.event_column!r}; name it in"
            f" one of: {choices(config.groups)}"
        )
    return {group: list(fields) for group, fields in config.groups.items()}


def write_features(
    folder: Folder, features: pa.Table, groups: Mapping[str, list[str]], text: pa.Array
) -> None:
    """Write ``items/features.parquet`` and, where the text contains the table's own column "text"
    among others, that column as ``items/own_text.parquet``.

    Why: an update composes the text of items again that today's catalogue lacks.

    Parameters
    ----------
    folder : Folder
        Folder of the dataset.
    features : pa.Table
        Table of the items, in dense order.
    groups : Mapping[str, list[str]]
        Group → the columns of its text.
    text : pa.Array
        Text of the items, in dense order.
    """
    folder.write_table("items/features.parquet", feature_table(features, text))
    fields = [name for names in groups.values() for name in names]
    is_same = fields == [TEXT] and text.equals(features.column(TEXT).combine_chunks())
    if TEXT in fields and TEXT in features.column_names and not is_same:
        folder.write_table(OWN_TEXT, features.select([TEXT]))


def items_table(dataset: PreparedDataset) -> pa.Table:
    """The table that the features of a dataset were made from, in dense order: its column "text" is
    the table's own one, and is absent where the table had none or a dataset of an earlier release
    does not keep it.
    """
    features, text = dataset.features, dataset.manifest.text
    rest = features.drop_columns([TEXT])
    if TEXT not in text.get("fields", ()):
        return rest
    path = f"{dataset.base.rstrip('/')}/{OWN_TEXT}"
    if dataset.filesystem.get_file_info(path).is_file:
        return rest.append_column(TEXT, dataset.table(OWN_TEXT).column(TEXT))
    is_only_field = text["fields"] == [TEXT] and "event_column" not in text
    return features if is_only_field else rest


def feature_table(features: pa.Table, text: pa.Array) -> pa.Table:
    """``items/features.parquet``: item_id, text, then the columns of the items table (``text``
    includes its own column "text").
    """
    rest = [name for name in features.column_names if name not in (schema.ITEM_ID, TEXT)]
    arrays = [features.column(schema.ITEM_ID), text, *(features.column(name) for name in rest)]
    return pa.table(arrays, names=[schema.ITEM_ID, TEXT, *rest])


def count_table(counts_N3: Array) -> pa.Table:
    """``items/counts.parquet``: number of interactions by split."""
    return pa.table({split: pa.array(counts_N3[:, code]) for code, split in enumerate(SPLITS)})
