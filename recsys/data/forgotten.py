"""The list of forgotten users, by which ``prepare`` leaves out of a source whoever was forgotten before.

Why: `recsys forget` removes a user from what this package wrote; the source may hold them for longer, and the next
`recsys prepare` would bring them back. The list holds salted hashes, no ids. Whoever has the list *and* guesses an id
can tell whether it is on it: keep the list where the source is kept. A bundle carries it, so that an update from it in
another folder leaves out the same users.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs

from recsys.config import Config
from recsys.data.histories import Array
from recsys.errors import ArtifactError
from recsys.storage.places import filesystem_of, reaching
from recsys.storage.uris import beside


def list_place(config: Config) -> str:
    """Where the list of a configuration is: ``data.forgotten``, or beside the dataset."""
    return config.data.forgotten or beside(config.dataset_dir, ".forgotten.json")


@dataclass(frozen=True)
class Forgotten:
    """Salted hashes of the ids of forgotten users: pairs of salt and hash."""

    hashes: frozenset[tuple[str, str]] = frozenset()

    @staticmethod
    def read(place: str) -> Forgotten:
        """The list at a place; an empty one where there is none.

        Raises
        ------
        ArtifactError
            the file is damaged: who was forgotten would come back.
        """
        filesystem, path = filesystem_of(place)
        with reaching(place):
            if filesystem.get_file_info(path).type == pyarrow.fs.FileType.NotFound:
                return Forgotten()
            with filesystem.open_input_stream(path) as stream:
                content = stream.read()
        try:
            return Forgotten.of_json(json.loads(content)["users"])
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{place}, the list of forgotten users, is damaged ({error}); restore it, or delete it and run `recsys "
                "forget` again for everybody who was on it"
            ) from None

    @staticmethod
    def of_json(content: Mapping[str, Sequence[str]]) -> Forgotten:
        """From what :meth:`to_json` gives."""
        return Forgotten(frozenset((str(salt), str(one)) for salt, hashes in content.items() for one in hashes))

    def to_json(self) -> dict[str, list[str]]:
        """Salt → hashes."""
        found: dict[str, list[str]] = {}
        for salt, one in sorted(self.hashes):
            found.setdefault(salt, []).append(one)
        return found

    def write(self, place: str) -> None:
        """Write the list; whole or not at all on a local disk."""
        filesystem, path = filesystem_of(place)
        local = isinstance(filesystem, pyarrow.fs.LocalFileSystem)
        target = f"{path}.writing" if local else path
        with reaching(place, "write to"):
            if local:
                filesystem.create_dir(path.rpartition("/")[0] or ".", recursive=True)
            with filesystem.open_output_stream(target) as stream:
                stream.write(json.dumps({"users": self.to_json()}, indent=1).encode())
            if local:
                filesystem.move(target, path)

    def __len__(self) -> int:
        return len(self.hashes)

    def with_all_of(self, other: Forgotten) -> Forgotten:
        """Both lists together, as where a dataset continues another one."""
        return Forgotten(self.hashes | other.hashes)

    def having(self, ids: Iterable[str]) -> Forgotten:
        """The list with more users on it."""
        salt = next((salt for salt, _ in sorted(self.hashes)), secrets.token_hex(16))
        return Forgotten(self.hashes | {(salt, _hash(salt, one)) for one in ids if not self.holds(one)})

    def holds(self, user_id: str) -> bool:
        return any((salt, _hash(salt, user_id)) in self.hashes for salt in self._salts)

    @cached_property
    def _salts(self) -> list[str]:
        return sorted({salt for salt, _ in self.hashes})

    def among(self, ids: Any) -> Array:
        """Which ids of an Arrow column are on the list: bool; null is not."""
        if not self.hashes:
            return np.zeros(len(ids), dtype=bool)
        array = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
        array = pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
        coded = array.cast(pa.string()).dictionary_encode()
        known = np.array([self.holds(one) for one in coded.dictionary.to_pylist()] + [False], dtype=bool)
        return np.asarray(known[np.asarray(coded.indices.fill_null(len(known) - 1))])

    def bound(self, content_hash: str) -> str:
        """The content hash of a dataset without these users; the same where nobody is on the list."""
        if not self.hashes:
            return content_hash
        names = " ".join(one for _, one in sorted(self.hashes))
        return hashlib.sha256(f"{content_hash} without {names}".encode()).hexdigest()


def _hash(salt: str, user_id: str) -> str:
    return hashlib.blake2b(user_id.encode(), digest_size=16, key=bytes.fromhex(salt)).hexdigest()
