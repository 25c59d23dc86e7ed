"""The HetRec 2011 Last.fm-2k release: listens, tag assignments, friends, artists.

Listens are ``listen`` events (value: play count), tag assignments are ``tag`` events with the tag's
text in the column ``tag``. With ``test_pairs``, listens are split into "test" (held-out pairs) and
"train". Tag events have no split; ``prepare`` excludes those of held-out (user, artist) pairs.

A folder ``knowledge`` next to the files may have triples about the artists, as KGCN uses them:
``kg.txt`` (head, relation, tail) and ``item_index2entity_id.txt`` (artist, entity), separated by
tabs and without a header.

Encodings: ``tags.dat`` is ISO-8859-1 with CRLF, ``artists.dat`` UTF-8 with stray quotes (read with
quoting off), the others ASCII with CRLF. Cantador, Brusilovsky, Kuflik: HetRec 2011,
https://grouplens.org/datasets/hetrec-2011/
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.config import HetRecLastFmSource
from recsys.errors import DataError, SourceError
from recsys.sources.base import Piece, SourceAdapter, read_all
from recsys.sources.byte_ranges import TSV
from recsys.sources.delimited import Cells, DelimitedPiece, assemble, delimited_pieces
from recsys.sources.files import InputFile, exists, input_file
from recsys.sources.first_rows import data_start
from recsys.sources.headers import read_header
from recsys.sources.links import linked
from recsys.sources.validate import CellRules, Layout

TAG: Final = "tag"
LISTEN: Final = "listen"
UNKNOWN_PAIR: Final = "unknown held-out pair"
UNKNOWN_TAG: Final = "unknown tag"

_TAGS: Final = Layout(  # a tag may be "none"
    schema.TableSchema("tags", {"tag_id": pa.string(), TAG: pa.string()}, {}, ()),
    rules=CellRules(absent=()),
)
_LATIN: Final = replace(TSV, encoding="iso-8859-1")
_COLUMNS: Final = {
    "user_artists.dat": ("userID", "artistID", "weight"),
    "user_taggedartists.dat": ("userID", "artistID", "tagID", "day", "month", "year"),
    "tags.dat": ("tagID", "tagValue"),
    "artists.dat": ("id", "name", "url", "pictureURL"),
    "user_friends.dat": ("userID", "friendID"),
}
"""Files of the folder with their columns, in the order of the files."""
_FACTS: Final = "knowledge/kg.txt"
_LINKS: Final = "knowledge/item_index2entity_id.txt"


class HetRecLastFmAdapter(SourceAdapter):
    """The folder with the five ``.dat`` files."""

    config: HetRecLastFmSource

    @property
    def name(self) -> str:
        """The short name of the data set."""
        return self.config.folder.split("?")[0].rstrip("/").rsplit("/", 1)[-1]

    def files(self) -> list[InputFile]:
        """All input files."""
        folder = self.config.folder.rstrip("/")
        pairs = [self.config.test_pairs] if self.config.test_pairs else []
        triples = (
            [f"{folder}/{name}" for name in (_FACTS, _LINKS)]
            if exists(f"{folder}/{_FACTS}")
            else []
        )
        return [
            input_file(path)
            for path in (*(f"{folder}/{name}" for name in _COLUMNS), *triples, *pairs)
        ]

    def pieces(self) -> dict[str, list[Piece]]:
        """The pieces of all tables."""
        listens_file, tagged_file, tags_file, artists_file, friends_file, *more = self.files()
        pairs_file = [more.pop()] if self.config.test_pairs else []
        listen = (schema.USER_ID, schema.ITEM_ID, schema.VALUE)
        constants = {schema.EVENT_TYPE: LISTEN}
        # the only times are made from three columns
        rules = replace(CellRules.of(self.config), time_format="")
        tagged = Layout(schema.EVENTS, ((TAG, pa.string()),), rules)
        if pairs_file:
            constants[schema.SPLIT] = "train"
        listens = _open(listens_file, listen, tagged, constants=constants)
        events: list[Piece] = [*listens]
        if pairs_file:
            events = self._split(listens, pairs_file[0])
        tags = read_all(_open(tags_file, ("tag_id", TAG), _TAGS, latin=True))
        known = tags.filter(pc.is_null(tags.column(schema.REASON)))
        tag_ids, tag_texts = (known.column(name).combine_chunks() for name in ("tag_id", TAG))
        columns = (schema.USER_ID, schema.ITEM_ID, "tag_id", "day", "month", "year")
        # a tag may be "none", which is else a missing value
        layout = replace(tagged, rules=_TAGS.rules)
        events += [
            TagPiece(piece, tag_ids, tag_texts)
            for piece in _open(tagged_file, columns, layout, index=1)
        ]
        friends = _open(
            friends_file,
            (schema.SRC_USER_ID, schema.DST_USER_ID),
            Layout(schema.SOCIAL, rules=rules),
        )
        named = Layout(schema.ITEMS, (("name", pa.string()),), rules)
        artists = _open(artists_file, (schema.ITEM_ID, "name", "", ""), named)
        tables: dict[str, list[Piece]] = {
            "events": events,
            "items": [*artists],
            "social": [*friends],
        }
        if more:
            facts_file, links_file = more
            fact = (schema.HEAD, schema.RELATION, schema.TAIL)
            tables["knowledge"] = [
                *_open_bare(facts_file, fact, Layout(schema.KNOWLEDGE, rules=rules))
            ]
            links = _open_bare(
                links_file, (schema.ITEM_ID, schema.ENTITY_ID), Layout(schema.ITEMS, rules=rules)
            )
            tables["items"] = linked(artists, links, named)
        return tables

    def _split(self, listens: list[DelimitedPiece], file: InputFile) -> list[Piece]:
        """The listens with held-out pairs marked as test, and the pairs that are not listens as bad
        rows.

        This reads all listens in one process, which is acceptable only because the release has a
        fixed, small size (92,834 listens).

        Raises
        ------
        DataError
            No pair is a listen: the file belongs to other data.
        """
        known_listens = read_all(listens)
        pairs = read_all(_open(file, (schema.USER_ID, schema.ITEM_ID), listens[0].layout, index=2))
        keys = _keys(pairs)
        is_known = pc.is_in(keys, value_set=_keys(known_listens))
        is_good = pc.is_null(pairs.column(schema.REASON))
        if not pc.any(pc.and_(is_known, is_good)).as_py():
            raise DataError(
                f"{file.path}: none of the {pairs.num_rows} held-out pairs is a listen in"
                f" {listens[0].file.path}; expected (userID, artistID) pairs of the same release"
            )
        reason = pc.if_else(is_known, pa.scalar(None, pa.string()), UNKNOWN_PAIR)
        reasons = pc.coalesce(pairs.column(schema.REASON), reason)
        # good rows have no raw text, but an unknown pair becomes a bad row and must show itself
        raw = pc.coalesce(pairs.column(schema.RAW), keys)
        pairs = _replace(_replace(pairs, schema.REASON, reasons), schema.RAW, raw)
        held_out = keys.filter(pc.and_(is_known, is_good)).combine_chunks()
        events: list[Piece] = [ListenPiece(piece, held_out) for piece in listens]
        unknown = pairs.filter(pc.is_valid(reasons))
        return [*events, Rows(unknown)] if unknown.num_rows else events


@dataclass(frozen=True)
class ListenPiece:
    """Listens with the held-out ones (``user TAB artist`` keys, in memory) marked as test."""

    listens: DelimitedPiece
    held_out: pa.Array

    def read(self) -> Iterator[pa.Table]:
        """Yield finished blocks."""
        for block in self.listens.read():
            is_test = pc.is_in(_keys(block), value_set=self.held_out)
            yield _replace(
                block, schema.SPLIT, pc.if_else(is_test, "test", block.column(schema.SPLIT))
            )


@dataclass(frozen=True)
class TagPiece:
    """Tag assignments with the text of the tag and the day as timestamp."""

    assignments: DelimitedPiece
    tag_ids: pa.Array
    tag_texts: pa.Array

    def read(self) -> Iterator[pa.Table]:
        """Yield finished blocks."""
        for cells in self.assignments.cells():
            yield self._block(cells)

    def _block(self, cells: Cells) -> pa.Table:
        given = self.assignments.named(cells.table)
        found = pc.index_in(given.column("tag_id"), value_set=self.tag_ids).combine_chunks()
        date = pc.binary_join_element_wise(
            *(given.column(name) for name in ("year", "month", "day")),
            "-",
            null_handling="replace",
            null_replacement="",
        )
        ids = {name: given.column(name) for name in (schema.USER_ID, schema.ITEM_ID)}
        event_type = pa.repeat(pa.scalar(TAG), given.num_rows)
        columns = {
            schema.TIMESTAMP: date,
            schema.EVENT_TYPE: event_type,
            TAG: self.tag_texts.take(found),
        }
        block = assemble(
            pa.table({**ids, **columns}), cells, self.assignments.layout, self.assignments.origin
        )
        lost = pc.and_(pc.is_null(block.column(schema.REASON)), pc.is_null(block.column(TAG)))
        if not pc.any(lost).as_py():
            return block
        block = _replace(
            block, schema.REASON, pc.if_else(lost, UNKNOWN_TAG, block.column(schema.REASON))
        )
        return _replace(block, schema.RAW, pc.if_else(lost, _keys(block), block.column(schema.RAW)))


@dataclass(frozen=True)
class Rows:
    """A few finished rows as a piece."""

    table: pa.Table

    def read(self) -> Iterator[pa.Table]:
        """Yield finished blocks."""
        yield self.table


def _open(
    file: InputFile,
    columns: tuple[str, ...],
    layout: Layout,
    constants: dict[str, str] | None = None,
    index: int = 0,
    latin: bool = False,
) -> list[DelimitedPiece]:
    """The pieces of one file, after a check of its header."""
    dialect = _LATIN if latin else TSV
    header = read_header(file, dialect)
    expected = _COLUMNS.get(file.name, _COLUMNS["user_artists.dat"][:2])
    # the release is fixed, so other columns mean another file
    if header.columns != expected:
        raise SourceError(
            f"{file.path}: found the columns {', '.join(header.columns)}, expected"
            f" {', '.join(expected)} with tabs; use the files of the HetRec 2011 release as"
            " they are"
        )
    return delimited_pieces(
        DelimitedPiece(file, index, columns, layout, dialect, header.end, None, constants or {})
    )


def _open_bare(file: InputFile, columns: tuple[str, ...], layout: Layout) -> list[DelimitedPiece]:
    """The pieces of a file without a header."""
    return delimited_pieces(
        DelimitedPiece(file, 0, columns, layout, TSV, header_end=data_start(file))
    )


def _keys(block: pa.Table) -> pa.ChunkedArray:
    """``user TAB item`` of every row, null where one is missing."""
    return pc.binary_join_element_wise(
        block.column(schema.USER_ID), block.column(schema.ITEM_ID), "\t"
    )


def _replace(block: pa.Table, name: str, values: pa.ChunkedArray) -> pa.Table:
    index = block.schema.get_field_index(name)
    return block.set_column(index, block.schema.field(index), values)
