"""Pieces of a source as ``prepare`` may read them: with pseudonyms for ids, and without forgotten users.

Why around the pieces: they are the one way from a source to everything that is written, bad rows and their raw text
included, so what is taken out here is nowhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from recsys import schema
from recsys.config import Config
from recsys.config.privacy import PseudonymConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.forgotten import Forgotten, list_place
from recsys.data.histories import Array
from recsys.data.pseudonyms import SAMPLE, Pseudonyms, email_like
from recsys.errors import ConfigError
from recsys.preparation.items import PROVENANCE

_USERS: Final = {
    "events": (schema.USER_ID,),
    "users": (schema.USER_ID,),
    "social": (schema.SRC_USER_ID, schema.DST_USER_ID),
}


@dataclass(frozen=True)
class Guard:
    """What is done with the user ids of a source. The key is looked up where a piece is read; it does not travel."""

    pseudonyms: PseudonymConfig
    forgotten: Forgotten

    @staticmethod
    def of(config: Config, inherited: Forgotten) -> Guard:
        """The guard of a configuration; ``inherited`` is the list of a model that the dataset continues.

        Raises
        ------
        ConfigError
            The key of ``data.pseudonymise`` is not where it should be.
        ArtifactError
            The list of forgotten users is damaged.
        """
        Pseudonyms.of(config.data.pseudonymise)
        here = Forgotten.read(list_place(config))
        whole = here.with_all_of(inherited)
        if len(whole) > len(here):
            whole.write(list_place(config))
        return Guard(config.data.pseudonymise, whole)

    def keyed(self, content_hash: str) -> str:
        """The content hash of a dataset whose ids the key has changed."""
        key = Pseudonyms.of(self.pseudonyms)
        return content_hash if key is None else hashlib.sha256(f"{content_hash} {key.check}".encode()).hexdigest()

    def check_same_key(self, before: PreparedDataset) -> None:
        """

        Raises
        ------
        ConfigError
            The dataset that is appended to has the pseudonyms of another key, or none.
        """
        key, known = Pseudonyms.of(self.pseudonyms), before.manifest.pseudonyms.get("check", "")
        if (key.check if key else "") != known:
            raise ConfigError(
                f"data.pseudonymise: {before.root} has {'pseudonyms of another key' if known else 'no pseudonyms'}, so "
                "its users would not be found again; give the key that it was prepared with"
                + ("" if known else ", which is none")
            )

    def described(self, whole: str) -> tuple[dict[str, Any], dict[str, str]]:
        """What the manifest says of who is left out, and of the key; ``whole``: the content hash of the dataset with
        everybody.
        """
        key = Pseudonyms.of(self.pseudonyms)
        said = {"of": whole, "users": self.forgotten.to_json()} if len(self.forgotten) else {}
        return said, {**self.pseudonyms.model_dump(), "check": key.check} if key else {}

    def warning(self, user_ids: pa.Array, users: pa.Table | None) -> str:
        """A note where ids, or values of a user's attributes, look like e-mail addresses; empty where none do."""
        if Pseudonyms.of(self.pseudonyms) is None and (found := email_like(user_ids)):
            looked = min(len(user_ids), SAMPLE)
            return (
                f"{found:,} of the first {looked:,} user ids look like e-mail addresses, which every "
                "artefact would hold: set data.pseudonymise.key_env, so that a keyed hash takes their place"
            )
        table = users if users is not None else pa.table({})
        texts = [field.name for field in table.schema if pa.types.is_string(field.type)]
        for name in texts:
            if name not in (*PROVENANCE, schema.USER_ID) and email_like(table.column(name).combine_chunks()):
                return f"the users' column {name!r} has values like e-mail addresses; leave it out of the source"
        return ""

    def around(self, pieces: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """The pieces of every table, guarded where a table holds users and there is anything to guard."""
        if not self.forgotten.hashes and Pseudonyms.of(self.pseudonyms) is None:
            return dict(pieces)
        return {
            table: [GuardedPiece(piece, _USERS[table], self) for piece in of_table] if table in _USERS else of_table
            for table, of_table in pieces.items()
        }


@dataclass(frozen=True)
class GuardedPiece:
    """A piece whose rows are guarded as they are read."""

    piece: Any
    columns: tuple[str, ...]
    guard: Guard

    def read(self) -> Iterator[pa.Table]:
        """The blocks of the piece without forgotten users and without ids.

        The raw text of a bad row is what the file says, so pseudonymised tables keep none, and columns beside those of
        the schema stay: what identifies people in them is for whoever names them to leave out.
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
                    block = block.set_column(block.schema.get_field_index(schema.RAW), schema.RAW, nothing)
            yield block.filter(pa.array(self._kept(block, present)))

    def _kept(self, block: pa.Table, present: list[str]) -> Array:
        gone = np.zeros(block.num_rows, dtype=bool)
        for name in present:
            gone |= self.guard.forgotten.among(block.column(name))
        return ~gone
