"""The knowledge graph as a table of triples with dense ids, sorted by head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.config import ItemTriplesConfig
from recsys.data.histories import Array
from recsys.data.vocabulary import Vocabulary, extend, union
from recsys.errors import ConfigError, valid_instead
from recsys.preparation.blocks import fetch, task
from recsys.preparation.dataset_writer import Folder
from recsys.preparation.quarantine import DUPLICATE, bad_rows, mark
from recsys.preparation.record import Record
from recsys.sources.list_cells import ListForm, as_lists
from recsys.values.absent import DEFAULT_RULES, CellRules
from recsys.values.arrow_types import is_variable_list
from recsys.values.cells import ids
from recsys.values.overlap import SideIds, compare

_TRIPLE_TEXT: Final = [schema.HEAD, schema.RELATION, schema.TAIL]
_TRIPLE_SCHEMA: Final = pa.schema(
    [
        *schema.KNOWLEDGE.columns.items(),
        (schema.FILE, pa.string()),
        (schema.ROW, pa.int64()),
        (schema.REASON, pa.string()),
        (schema.RAW, pa.string()),
    ]
)


@dataclass(frozen=True)
class TripleRules:
    """Which columns of items, and which relations of a knowledge table, become triples."""

    columns: tuple[str, ...] = ()
    # of text columns with several values in a cell
    separators: Mapping[str, str] = field(default_factory=dict)
    relations: tuple[str, ...] | None = None  # of the table; None: all
    cells: CellRules = DEFAULT_RULES

    @staticmethod
    def of(
        config: ItemTriplesConfig, features: pa.Table, cells: CellRules = DEFAULT_RULES
    ) -> TripleRules:
        """The rules of a configuration.

        Parameters
        ----------
        config : ItemTriplesConfig
            The section ``data.knowledge``.
        features : pa.Table
            The table of items.
        cells : CellRules
            How cells are read, such as which ones count as empty.

        Returns
        -------
        TripleRules
            The rules.

        Raises
        ------
        ConfigError
            A column does not exist, or cannot become triples.
        """
        ids = (schema.ITEM_ID, schema.ENTITY_ID)
        known = [name for name in features.column_names if name not in ids]
        if unknown := [name for name in config.item_columns if name not in known]:
            raise ConfigError(
                f"data.knowledge.item_columns: {', '.join(unknown)} not among the columns of items;"
                f" {valid_instead(unknown[0], known, 'columns')}"
            )
        if useless := sorted({*config.separators} - {*config.item_columns}):
            raise ConfigError(
                f"data.knowledge.separators: {', '.join(useless)} not in"
                " data.knowledge.item_columns"
            )
        if vectors := [
            n
            for n in config.item_columns
            if pa.types.is_fixed_size_list(features.schema.field(n).type)
        ]:
            raise ConfigError(
                f"data.knowledge.item_columns: {', '.join(vectors)} holds vectors; name columns of"
                " categories"
            )
        relations = None if config.relations is None else tuple(config.relations)
        return TripleRules(
            tuple(dict.fromkeys(config.item_columns)), dict(config.separators), relations, cells
        )


def encode_triples(
    features: pa.Table,
    *blocks: pa.Table,
    rules: TripleRules | None = None,
    base: Vocabulary | None = None,
) -> tuple[dict[str, pa.Table], pa.Table, int]:
    """Encode triples with dense entities and relations; returns the files to write, the bad rows,
    and the number of rows read.

    The columns that the rules name become triples as well: (entity of the item, column,
    ``COLUMN=VALUE``). An item without an entity in the items table then becomes the entity
    ``item_id=ID``. ``items/entities.parquet`` has the entity of every item, null where the graph
    does not have it. If the items table names no entities at all, item ids are entity ids. Entities
    and relations of ``base`` keep their numbers.

    Parameters
    ----------
    features : pa.Table
        Table of the items, in dense order.
    *blocks : pa.Table
        Rows of the knowledge table.
    rules : TripleRules | None
        Columns and relations that become triples; None: no columns, and all relations.
    base : Vocabulary | None
        The vocabulary of the dataset that is continued, or None.

    Returns
    -------
    dict[str, pa.Table]
        Path inside the dataset → table; empty without triples.
    pa.Table
        Bad rows, for the quarantine.
    int
        Number of rows of the knowledge table.
    """
    rows = pa.concat_tables(
        [block for block in blocks if block.num_rows] or [_TRIPLE_SCHEMA.empty_table()],
        promote_options="permissive",
    )
    rows, read = (
        rows.combine_chunks().sort_by([(schema.FILE, "ascending"), (schema.ROW, "ascending")]),
        rows.num_rows,
    )
    rows = _of_relations(rows, rules.relations if rules else None)
    good = np.asarray(pc.is_null(rows.column(schema.REASON)))
    clean = rows.filter(pa.array(good))
    given = [clean.column(name).combine_chunks().cast(pa.string()) for name in _TRIPLE_TEXT]
    item_entities, from_items = item_triples(
        _with_entities(features, given), rules or TripleRules()
    )
    entities = extend(
        base.entities if base else None, union([given[0], given[2], from_items[0], from_items[2]])
    )
    relations = extend(base.relations if base else None, union([given[1], from_items[1]]))
    keys = _triple_keys(given, entities, relations)
    repeated = good.copy()
    repeated[good] = _repeats(keys)
    unique = np.unique(np.concatenate([keys, _triple_keys(from_items, entities, relations)]))
    bad = bad_rows(mark(rows, repeated, DUPLICATE), _TRIPLE_TEXT)
    if not len(unique):
        return {}, bad, read
    head, rest = np.divmod(unique, len(relations) * len(entities))
    relation, tail = np.divmod(rest, len(entities))
    codes = {"head": head, "relation": relation, "tail": tail}
    files = {
        "graphs/knowledge.parquet": pa.table(
            {name: pa.array(code.astype(np.int32)) for name, code in codes.items()}
        ),
        "vocab/entities.parquet": pa.table({"entity": entities}),
        "vocab/relations.parquet": pa.table({"relation": relations}),
        "items/entities.parquet": pa.table(
            {"entity": pc.index_in(item_entities, value_set=entities)}
        ),
    }
    return files, bad, read


def _with_entities(features: pa.Table, given: list[pa.Array]) -> pa.Table:
    """Use item ids as entity ids where the items table names no entities: the triples are then
    about items.
    """
    links = features.column(schema.ENTITY_ID) if schema.ENTITY_ID in features.column_names else None
    if not len(given[0]) or (links is not None and links.null_count < len(links)):
        return features
    ids = features.column(schema.ITEM_ID).combine_chunks().cast(pa.string())
    in_triples = pc.is_in(ids, value_set=pa.concat_arrays([given[0], given[2]]))
    others = [name for name in features.column_names if name != schema.ENTITY_ID]
    return features.select(others).append_column(
        schema.ENTITY_ID, pc.if_else(in_triples, ids, None)
    )


def _repeats(keys: Array) -> Array:
    """Which rows repeat the key of an earlier row."""
    repeated = np.ones(len(keys), dtype=bool)
    repeated[np.unique(keys, return_index=True)[1]] = False
    return repeated


def _of_relations(rows: pa.Table, wanted: tuple[str, ...] | None) -> pa.Table:
    """The rows of the wanted relations, and all bad rows."""
    if wanted is None:
        return rows
    relations = rows.column(schema.RELATION).cast(pa.string())
    is_bad = pc.is_valid(rows.column(schema.REASON))
    known = pc.unique(relations.filter(pc.invert(is_bad)))
    if unknown := [
        name for name in wanted if not pc.is_in(pa.scalar(name), value_set=known).as_py()
    ]:
        raise ConfigError(
            f"data.knowledge.relations: {', '.join(unknown)} not among the relations of the table; "
            + valid_instead(unknown[0], known.to_pylist(), "relations")
        )
    is_wanted = pc.is_in(relations, value_set=pa.array(wanted, pa.string()))
    return rows.filter(pc.or_kleene(is_wanted, is_bad))


def _triple_keys(triples: list[pa.Array], entities: pa.Array, relations: pa.Array) -> Array:
    """One number per triple, which sorts by head, relation and tail."""
    head, relation, tail = (
        np.asarray(pc.index_in(values, value_set=known)).astype(np.int64)
        for values, known in zip(triples, (entities, relations, entities), strict=True)
    )
    keys: Array = (head * max(len(relations), 1) + relation) * max(len(entities), 1) + tail
    return keys


def item_triples(features: pa.Table, rules: TripleRules) -> tuple[pa.Array, list[pa.Array]]:
    """The name of every item's entity (null where it has none), and the triples from its columns
    (head, relation, tail).
    """
    linked = pa.nulls(features.num_rows, pa.string())
    if schema.ENTITY_ID in features.column_names:
        linked = features.column(schema.ENTITY_ID).combine_chunks().cast(pa.string())
    if not rules.columns:
        return linked, [pa.array([], pa.string())] * 3
    own = pc.binary_join_element_wise(
        pa.scalar(schema.ITEM_ID), features.column(schema.ITEM_ID).combine_chunks(), "="
    )
    names = pc.coalesce(linked, own)
    heads, relations, tails = [], [], []
    for column in rules.columns:
        cells = features.column(column).combine_chunks()
        rows, values = _values(cells, rules.separators.get(column, ""), rules.cells)
        heads.append(names.take(rows))
        relations.append(pa.repeat(pa.scalar(column), len(values)))
        tails.append(pc.binary_join_element_wise(pa.scalar(column), values, "="))
    return names, [pa.concat_arrays(parts) for parts in (heads, relations, tails)]


def _values(column: pa.Array, separator: str, cells: CellRules) -> tuple[pa.Array, pa.Array]:
    """The rows and the trimmed values of a column's cells; a list gives several values, a missing
    cell none.
    """
    if separator:
        column = as_lists(column, ListForm(separator))
    rows = pa.array(np.arange(len(column)))
    if is_variable_list(column.type):
        rows, column = pc.list_parent_indices(column), pc.list_flatten(column)
    values = ids(column.cast(pa.string()), cells)
    kept = pc.is_valid(values)
    return rows.filter(kept), values.filter(kept)


def _check_overlap(features: pa.Table, files: dict[str, pa.Table]) -> None:
    """Refuse triples none of which is about an item.

    Raises
    ------
    DataError
        No triple is about an item; the message shows ids of both.
    """
    entities = files["items/entities.parquet"].column("entity")
    if entities.null_count < len(entities):
        return
    linked = schema.ENTITY_ID in features.column_names and features.column(
        schema.ENTITY_ID
    ).null_count < len(features)
    key = schema.ENTITY_ID if linked else schema.ITEM_ID
    ids = features.column(key).combine_chunks().cast(pa.string()).drop_null().unique()
    known = files["vocab/entities.parquet"].column("entity").combine_chunks()
    compare(
        SideIds("items", key, ids),
        SideIds("knowledge", f"{schema.HEAD}, {schema.TAIL}", known),
        0.0,
    )


def write_triples(
    folder: Folder,
    features: pa.Table,
    rules: TripleRules,
    base: Vocabulary | None,
    *blocks: pa.Table,
) -> tuple[dict[str, int], pa.Table, int]:
    """Write the knowledge graph and its vocabularies; returns their sizes, the bad rows, and the
    number of rows read.

    Parameters
    ----------
    folder : Folder
        Folder of the dataset.
    features : pa.Table
        Table of the items, in dense order.
    rules : TripleRules
        Columns and relations that become triples.
    base : Vocabulary | None
        The vocabulary of the dataset that is continued, or None.
    *blocks : pa.Table
        Rows of the knowledge table; none: triples come from the items only.

    Returns
    -------
    dict[str, int]
        Numbers of ``triples``, ``entities`` and ``relations``.
    pa.Table
        Bad rows, for the quarantine.
    int
        Number of rows of the knowledge table.
    """
    files, bad, read = encode_triples(features, *blocks, rules=rules, base=base)
    if blocks and files:
        _check_overlap(features, files)
    for name, table in files.items():
        folder.write_table(name, table)
    sources = {
        "triples": "graphs/knowledge",
        "entities": "vocab/entities",
        "relations": "vocab/relations",
    }
    return (
        {name: files[f"{path}.parquet"].num_rows if files else 0 for name, path in sources.items()},
        bad,
        read,
    )


def write_knowledge(
    folder: Folder,
    features: pa.Table,
    rules: TripleRules,
    base: Vocabulary | None,
    blocks: Sequence[Any] | None,
    record: Record,
) -> None:
    """Write the knowledge graph in a task, and count its triples and entities.

    Parameters
    ----------
    folder : Folder
        Folder of the dataset.
    features : pa.Table
        Features of the items in dense order.
    rules : TripleRules
        Which columns and relations become triples.
    base : Vocabulary | None
        Entities and relations that keep their numbers.
    blocks : Sequence[Any] | None
        References to the blocks of the knowledge table; None: the source has none.
    record : Record
        Gets the counts and the bad rows.

    Raises
    ------
    DataError
        There are too many bad rows, or no triple is about an item.
    """
    if blocks is None and not rules.columns:
        return
    wanted = (schema.ITEM_ID, schema.ENTITY_ID, *rules.columns)
    columns = features.select([name for name in wanted if name in features.column_names])
    sizes, bad, read = fetch(
        task(write_triples).remote(folder, columns, rules, base, *(blocks or ()))
    )
    if blocks is not None:
        record.add_bad_rows("knowledge", read, [bad])
    record.counts.update(sizes)
    record.progress(
        f"knowledge graph: {sizes['triples']:,} triples about {sizes['entities']:,} entities"
    )
