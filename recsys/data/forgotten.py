"""The list of forgotten users; ``prepare`` leaves their rows out of the source.

Why: `recsys forget` removes a user from what this package wrote. The source may still contain the
user, and the next `recsys prepare` would bring the user back. The list contains salted hashes, no
ids. A person who has the list *and* guesses an id can check whether the id is on it, so keep the
list where the source is kept. A bundle carries the list, so that an update from the bundle in
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

from recsys.config import DataConfig
from recsys.data.histories import Array
from recsys.errors import ArtifactError
from recsys.storage.filesystems import filesystem_of, storage_errors
from recsys.storage.uris import beside


def list_path(data: DataConfig, dataset_dir: str) -> str:
    """Path of the list: ``data.forgotten``, or a file next to the dataset."""
    return data.forgotten or beside(dataset_dir, ".forgotten.json")


@dataclass(frozen=True)
class Forgotten:
    """Salted hashes of the ids of forgotten users: pairs of salt and hash."""

    hashes: frozenset[tuple[str, str]] = frozenset()

    @staticmethod
    def read(uri: str) -> Forgotten:
        """Read the list at a path; an empty list where there is no file.

        Raises
        ------
        ArtifactError
            The file is damaged, so forgotten users would come back.
        """
        filesystem, path = filesystem_of(uri)
        with storage_errors(uri):
            if filesystem.get_file_info(path).type == pyarrow.fs.FileType.NotFound:
                return Forgotten()
            with filesystem.open_input_stream(path) as stream:
                content = stream.read()
        try:
            return Forgotten.of_json(json.loads(content)["users"])
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{uri}, the list of forgotten users, is damaged ({error}); restore it, or delete"
                " it and run `recsys forget` again for every user who was on it"
            ) from None

    @staticmethod
    def of_json(content: Mapping[str, Sequence[str]]) -> Forgotten:
        """Read the result of :meth:`to_json`."""
        return Forgotten(
            frozenset((str(salt), str(one)) for salt, hashes in content.items() for one in hashes)
        )

    def to_json(self) -> dict[str, list[str]]:
        """The list as JSON values: salt → hashes."""
        found: dict[str, list[str]] = {}
        for salt, one in sorted(self.hashes):
            found.setdefault(salt, []).append(one)
        return found

    def write(self, uri: str) -> None:
        """Write the list; on a local disk the write is atomic."""
        filesystem, path = filesystem_of(uri)
        local = isinstance(filesystem, pyarrow.fs.LocalFileSystem)
        target = f"{path}.writing" if local else path
        with storage_errors(uri, "write to"):
            if local:
                filesystem.create_dir(path.rpartition("/")[0] or ".", recursive=True)
            with filesystem.open_output_stream(target) as stream:
                stream.write(json.dumps({"users": self.to_json()}, indent=1).encode())
            if local:
                filesystem.move(target, path)

    def __len__(self) -> int:
        return len(self.hashes)

    def with_all_of(self, other: Forgotten) -> Forgotten:
        """The union of both lists, for a dataset that continues another one."""
        return Forgotten(self.hashes | other.hashes)

    def having(self, ids: Iterable[str]) -> Forgotten:
        """The list with more users."""
        salt = next((salt for salt, _ in sorted(self.hashes)), secrets.token_hex(16))
        return Forgotten(
            self.hashes | {(salt, _hash(salt, one)) for one in ids if not self.holds(one)}
        )

    def holds(self, user_id: str) -> bool:
        """Whether a user is on the list."""
        return any((salt, _hash(salt, user_id)) in self.hashes for salt in self._salts)

    @cached_property
    def _salts(self) -> list[str]:
        return sorted({salt for salt, _ in self.hashes})

    def among(self, ids: Any) -> Array:
        """Which ids of an Arrow column are on the list: [rows] bool, False for null."""
        if not self.hashes:
            return np.zeros(len(ids), dtype=bool)
        array = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
        array = pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
        coded = array.cast(pa.string()).dictionary_encode()
        known = np.array(
            [self.holds(one) for one in coded.dictionary.to_pylist()] + [False], dtype=bool
        )
        return np.asarray(known[np.asarray(coded.indices.fill_null(len(known) - 1))])

    def bound(self, content_hash: str) -> str:
        """The content hash of a dataset without these users; unchanged where the list is empty."""
        if not self.hashes:
            return content_hash
        names = " ".join(one for _, one in sorted(self.hashes))
        return hashlib.sha256(f"{content_hash} without {names}".encode()).hexdigest()


def _hash(salt: str, user_id: str) -> str:
    return hashlib.blake2b(user_id.encode(), digest_size=16, key=bytes.fromhex(salt)).hexdigest()
