"""Sequence files: one line for each user, ``user item item …`` in order; optionally a table of the
items. For several files, or more tables, ``canonical`` reads lines too: ``format: {events:
sequences}``.
"""

from __future__ import annotations

from recsys import schema
from recsys.config import SequencesSource
from recsys.errors import SourceError
from recsys.sources.base import Piece, SourceAdapter
from recsys.sources.byte_ranges import CHUNK_BYTES
from recsys.sources.files import InputFile, find, input_file
from recsys.sources.first_rows import Form
from recsys.sources.sequence_lines import LineForm, SequencePiece, read_line_head, sequence_pieces
from recsys.sources.table_heads import TableFiles, read_heads
from recsys.sources.table_pieces import table_pieces
from recsys.sources.validate import CellRules, Layout


class SequencesAdapter(SourceAdapter):
    """``events`` is one file; ``items`` are files of a canonical table."""

    config: SequencesSource

    chunk_bytes = CHUNK_BYTES

    @property
    def name(self) -> str:
        """The short name of the data set."""
        parts = self.config.events.split("?")[0].rstrip("/").split("/")
        return parts[-2] if len(parts) > 1 and parts[-2] else parts[-1].split(".")[0]

    def files(self) -> list[InputFile]:
        """All input files."""
        return [input_file(self.config.events), *find(self.config.items)]

    def pieces(self) -> dict[str, list[Piece]]:
        """The pieces of all tables."""
        events, *items = self.files()
        config, layout = self.config, Layout(schema.EVENTS, rules=CellRules.of(self.config))
        form = LineForm(layout, self._start_of(events), config.separator, config.comment)
        whole = SequencePiece(events, None, form, self.chunk_bytes)
        tables: dict[str, list[Piece]] = {"events": [*sequence_pieces(whole)]}
        if items:
            tables["items"] = table_pieces(self._items(items))
        return tables

    def check(self) -> None:
        """Check the heads of all files; see the base class."""
        events, *items = self.files()
        self._start_of(events)
        if items:
            read_heads(self._items(items))

    def _start_of(self, events: InputFile) -> int:
        """Check the first lines, fill the notes, and return the byte where the lines start.

        Raises
        ------
        SourceError
            The lines are not of the form, or the configuration renames columns of no file.
        """
        head = read_line_head(events, self.config.separator, self.config.comment)
        if self.config.rename and not self.config.items:
            raise SourceError(
                "data.source.rename renames columns of the items, but data.source.items lists no"
                " file"
            )
        self.notes = [f"{events.name}: {note}" for note in head.notes]
        return head.start

    def _items(self, files: list[InputFile]) -> TableFiles:
        rules = CellRules.of(self.config, schema.ITEMS.name)
        numbers = tuple(self.config.numbers)
        return TableFiles(
            schema.ITEMS,
            tuple(files),
            self.config.rename,
            form=Form(table="items"),
            rules=rules,
            numbers=numbers,
        )
