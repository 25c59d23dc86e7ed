"""Pieces of a source with pseudonyms instead of ids and without forgotten users.

Why here: everything that ``prepare`` writes comes from the pieces, also bad rows and their raw
text. What is removed here is in no artefact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from recsys import schema
from recsys.config import DataConfig
from recsys.config.privacy import PseudonymConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.forgotten import Forgotten, list_path
from recsys.data.histories import Array
from recsys.data.pseudonyms import Pseudonyms, email_like, email_note
from recsys.errors import ConfigError
from recsys.preparation.items import PROVENANCE

_USERS: Final = {
    "events": (schema.USER_ID,),
    "users": (schema.USER_ID,),
    "social": (schema.SRC_USER_ID, schema.DST_USER_ID),
}


@dataclass(frozen=True)
class Guard:
    """Pseudonymises user ids of a source and removes forgotten users. Every task reads the key
    itself; the key is never sent to it.
    """

    pseudonyms: PseudonymConfig
    forgotten: Forgotten

    @staticmethod
    def of(data: DataConfig, dataset_dir: str, inherited: Forgotten) -> Guard:
        """The guard of a configuration. ``inherited`` is the list of the earlier dataset or model;
        new entries are added to the list of this configuration.

        Parameters
        ----------
        data : DataConfig
            The section ``data``.
        dataset_dir : str
            Path of the dataset; the list of forgotten users may be next to it.
        inherited : Forgotten
            Forgotten users of the earlier dataset or model; may be empty.

        Returns
        -------
        Guard
            The guard.

        Raises
        ------
        ConfigError
            The key of ``data.pseudonymise`` is not at its location.
        ArtifactError
            The list of forgotten users is damaged.
        """
        Pseudonyms.of(data.pseudonymise)
        here = Forgotten.read(list_path(data, dataset_dir))
        whole = here.with_all_of(inherited)
        if len(whole) > len(here):
            whole.write(list_path(data, dataset_dir))
        return Guard(data.pseudonymise, whole)

    def keyed(self, content_hash: str) -> str:
        """The content hash of a dataset with pseudonyms of this key; unchanged without a key."""
        key = Pseudonyms.of(self.pseudonyms)
        return (
            content_hash
            if key is None
            else hashlib.sha256(f"{content_hash} {key.check}".encode()).hexdigest()
        )

    def check_same_key(self, before: PreparedDataset) -> None:
        """Refuse to append to a dataset with another key.

        Raises
        ------
        ConfigError
            The dataset has pseudonyms of another key, or one of both has no pseudonyms.
        """
        key, known = Pseudonyms.of(self.pseudonyms), before.manifest.pseudonyms.get("check", "")
        if (key.check if key else "") != known:
            raise ConfigError(
                f"data.pseudonymise: {before.root} has"
                f" {'pseudonyms of another key' if known else 'no pseudonyms'}, so the ids of its"
                " users would not match; "
                + ("give the key that it was prepared with" if known else "remove the key")
            )

    def described(self, whole: str) -> tuple[dict[str, Any], dict[str, str]]:
        """The manifest's entries on forgotten users and on the key. ``whole`` is the content hash
        of the dataset with all users.
        """
        key = Pseudonyms.of(self.pseudonyms)
        forgotten = {"of": whole, "users": self.forgotten.to_json()} if len(self.forgotten) else {}
        return forgotten, {**self.pseudonyms.model_dump(), "check": key.check} if key else {}

    def warning(self, user_ids: pa.Array, users: pa.Table | None) -> str:
        """A note if user ids or attributes look like e-mail addresses, else an empty string."""
        if Pseudonyms.of(self.pseudonyms) is None and (note := email_note(user_ids)):
            return note
        table = users if users is not None else pa.table({})
        texts = [field.name for field in table.schema if pa.types.is_string(field.type)]
        for name in texts:
            if name not in (*PROVENANCE, schema.USER_ID) and email_like(
                table.column(name).combine_chunks()
            ):
                return (
                    f"the users' column {name!r} has values like e-mail addresses; remove it from"
                    " the source"
                )
        return ""

    def around(self, pieces: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Guard the pieces of all tables with user ids, if there is a key or a forgotten user."""
        if not self.forgotten.hashes and Pseudonyms.of(self.pseudonyms) is None:
            return dict(pieces)
        return {
            table: (
                [GuardedPiece(piece, _USERS[table], self) for piece in of_table]
                if table in _USERS
                else of_table
            )
            for table, of_table in pieces.items()
        }


@dataclass
class GuardedPiece:
    """A piece whose rows are guarded when they are read."""

    piece: Any
    columns: tuple[str, ...]
    guard: Guard
    num_forgotten: int = 0  # rows of forgotten users so far

    def read(self) -> Iterator[pa.Table]:
        """Yield the blocks of the piece with pseudonyms and without forgotten users.

        The raw text of a bad row contains the id, so pseudonymised tables have no raw text.
        Additional columns stay unchanged; the user must leave out columns that identify people.

        Yields
        ------
        Table
            One block without the rows of forgotten users; possibly empty.
        """
        key = Pseudonyms.of(self.guard.pseudonyms)
        for block in self.piece.read():
            present = [name for name in self.columns if name in block.column_names]
            if key is not None:
                for name in present:
                    block = block.set_column(
                        block.schema.get_field_index(name), name, key.of_column(block.column(name))
                    )
                if schema.RAW in block.column_names:
                    nothing = pa.nulls(block.num_rows, pa.string())
                    block = block.set_column(
                        block.schema.get_field_index(schema.RAW), schema.RAW, nothing
                    )
            kept = self._kept(block, present)
            self.num_forgotten += int((~kept).sum())
            yield block.filter(pa.array(kept))

    def _kept(self, block: pa.Table, present: list[str]) -> Array:
        gone = np.zeros(block.num_rows, dtype=bool)
        for name in present:
            gone |= self.guard.forgotten.among(block.column(name))
        return ~gone
