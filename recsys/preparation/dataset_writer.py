"""Write a prepared dataset under a temporary name and put it in its place only when it is complete.

Why: a reader that finds ``manifest.json`` can trust all other files. On a local disk the folder is
written under another name and renamed last. An object store cannot rename, so the old manifest is
deleted first and the new one is written last, and a lock object keeps out a second writer in
between.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from recsys.data.dataset import PreparedDataset
from recsys.data.manifest import Manifest
from recsys.errors import DataError
from recsys.storage.filesystems import filesystem_of, storage_errors
from recsys.storage.locks import holding
from recsys.storage.uris import beside, is_remote, within

MANIFEST: Final = "manifest.json"
_LAYOUT: Final = frozenset(
    {MANIFEST, "vocab", "users", "items", "histories", "graphs", "text", "provenance", "events"}
    | {"quarantine", "dropped"}
)
_STALE_S: Final = 24 * 3600.0


@dataclass(frozen=True)
class Folder:
    """A folder to write tables to; small enough to be sent to tasks on other machines."""

    filesystem: Any  # pyarrow.fs.FileSystem
    path: str

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a Parquet file; equal tables give equal bytes.

        Only strings get a dictionary: numbers rarely repeat, and without dictionaries histories are
        smaller and much faster to write.
        """
        self.write_parts(name, table.schema, [table])

    def write_parts(self, name: str, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
        """:meth:`write_table` for a table that arrives in parts.

        Parameters
        ----------
        name : str
            Path of the file inside the folder.
        schema : pa.Schema
            Schema of all parts.
        tables : Iterable[pa.Table]
            The parts, in order.

        Raises
        ------
        StorageError
            The folder cannot be written to.
        """
        path = f"{self.path}/{name}"
        texts = [field.name for field in schema if pa.types.is_string(field.type)]
        how = {"compression": "zstd", "use_dictionary": texts, "filesystem": self.filesystem}
        with storage_errors(self.uri, "write to"):
            self.make_folder(path.rsplit("/", 1)[0])
            with pq.ParquetWriter(path, schema, **how) as writer:
                for table in tables:
                    writer.write_table(table)

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file."""
        with storage_errors(self.uri, "write to"):
            self.make_folder(f"{self.path}/{name}".rsplit("/", 1)[0])
            with self.filesystem.open_output_stream(f"{self.path}/{name}") as stream:
                stream.write(content)

    def make_folder(self, path: str) -> None:
        """Make a folder on a local disk; on object stores it would be an extra object."""
        if self.is_local:
            self.filesystem.create_dir(path, recursive=True)

    @property
    def uri(self) -> str:
        """The path or URI, for messages."""
        return self.path if self.is_local else f"{self.filesystem.type_name}://{self.path}"

    def read_table(self, name: str) -> pa.Table:
        """Read a Parquet file."""
        with storage_errors(self.uri):
            return pq.read_table(f"{self.path}/{name}", filesystem=self.filesystem)

    def write_text(self, name: str, text: str) -> None:
        """Write a file as UTF-8."""
        self.write_bytes(name, text.encode())

    def entries(self) -> list[str]:
        """Names of the files and folders directly inside; empty where the folder does not exist."""
        selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True)
        with storage_errors(self.uri):
            return sorted(info.base_name for info in self.filesystem.get_file_info(selector))

    def link(self, source: Folder, folder: str, names: Iterable[str]) -> None:
        """Take over unchanging files of another folder, by hard links where possible.

        Parameters
        ----------
        source : Folder
            The folder that has the files.
        folder : str
            Path inside both folders.
        names : Iterable[str]
            Names of the files there.

        Raises
        ------
        StorageError
            The folder cannot be written to.
        """
        with storage_errors(self.uri, "write to"):
            self.make_folder(f"{self.path}/{folder}")
            for name in names:
                self._link(source, f"{folder}/{name}")

    def _link(self, source: Folder, name: str) -> None:
        one, other = f"{source.path}/{name}", f"{self.path}/{name}"
        if self.is_local and source.is_local:
            with suppress(OSError):  # another device, or a filesystem without hard links
                os.link(one, other)
                return
        if self.filesystem.equals(source.filesystem):
            self.filesystem.copy_file(one, other)
        else:
            systems = {
                "source_filesystem": source.filesystem,
                "destination_filesystem": self.filesystem,
            }
            pyarrow.fs.copy_files(one, other, **systems)

    @property
    def is_local(self) -> bool:
        """Whether the folder is on a local disk."""
        return isinstance(self.filesystem, pyarrow.fs.LocalFileSystem)

    def clear(self) -> None:
        """Remove all files, and keep an empty folder."""
        self.remove()
        self.make_folder(self.path)

    def remove(self) -> None:
        """Remove the folder, the manifest first: on an object store the removal is not atomic."""
        with suppress(FileNotFoundError), storage_errors(self.uri, "write to"):
            if (
                self.filesystem.get_file_info(f"{self.path}/{MANIFEST}").type
                == pyarrow.fs.FileType.File
            ):
                self.filesystem.delete_file(f"{self.path}/{MANIFEST}")
            self.filesystem.delete_dir(self.path)


def folder_of(dataset: PreparedDataset) -> Folder:
    """The absolute folder of a dataset, for tasks in other working directories."""
    return _absolute(dataset.filesystem, dataset.base)


def _absolute(filesystem: Any, path: str) -> Folder:
    folder = Folder(filesystem, path)
    return Folder(filesystem, os.path.abspath(path)) if folder.is_local else folder


class DatasetWriter:
    """Writes the dataset of one ``prepare``.

    Attributes
    ----------
    folder
        The folder to write to until the dataset is complete.

    Raises
    ------
    DataError
        The folder has files that are not a prepared dataset and would be lost.
    """

    def __init__(self, root: str, aside: bool | None = None) -> None:
        self.root = root
        filesystem, base = filesystem_of(root)
        if is_remote(root) and "/" not in base:
            raise DataError(
                f"{root} is a whole bucket; set data.dir to a folder in it:"
                f" {within(root, 'dataset')}"
            )
        self._final = _absolute(filesystem, base)
        self._aside = self._final.is_local if aside is None else aside
        # unique, because late tasks of a failed attempt may still write to its folder
        self._mark = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.folder = (
            Folder(filesystem, f"{self._final.path}.writing-{self._mark}")
            if self._aside
            else self._final
        )

    @property
    def quarantine(self) -> Folder:
        """The folder that keeps bad rows when a run is refused."""
        return Folder(self._final.filesystem, f"{self._final.path}.quarantine")

    @property
    def quarantine_root(self) -> str:
        """The path or URI of :attr:`quarantine`."""
        return beside(self.root, ".quarantine")

    @contextmanager
    def writing(self) -> Iterator[Folder]:
        """Remove leftovers, write inside the block, and remove the folder if the block fails.

        Yields
        ------
        Folder
            Where the files of the dataset are written.

        Raises
        ------
        ArtifactError
            Another process is writing to the same folder of an object store.
        """
        with nullcontext() if self._aside else self._locked(), self._written() as folder:
            yield folder

    def _locked(self) -> AbstractContextManager[None]:
        return holding(
            beside(self.root, ".lock"),
            "`recsys prepare`",
            "wait for it to end, or choose another data.dir",
        )

    @contextmanager
    def _written(self) -> Iterator[Folder]:
        self._refuse_other_files()
        self.recover()
        if not self._aside:
            self._final.remove()
        self.folder.make_folder(self.folder.path)
        try:
            yield self.folder
        except BaseException:
            self.folder.remove()
            raise

    def commit(self, manifest: Manifest) -> None:
        """Make the dataset valid: write the manifest last and, on a local disk, rename the
        folder.
        """
        self.folder.write_text(MANIFEST, manifest.dump())
        filesystem = self._final.filesystem
        if self._aside:
            replaced = Folder(filesystem, f"{self._final.path}.replaced-{self._mark}")
            if filesystem.get_file_info(self._final.path).type == pyarrow.fs.FileType.Directory:
                # a folder with content cannot be renamed over; a reader with open files keeps the
                # old ones
                filesystem.move(self._final.path, replaced.path)
            filesystem.move(self.folder.path, self._final.path)
            replaced.remove()
        # of an earlier, refused run: its rows are not of this dataset
        self.quarantine.remove()

    def _refuse_other_files(self) -> None:
        with storage_errors(self.root):
            kind = self._final.filesystem.get_file_info(self._final.path).type
        others = (
            sorted(set(self._final.entries()) - _LAYOUT)
            if kind == pyarrow.fs.FileType.Directory
            else []
        )
        if kind == pyarrow.fs.FileType.File or others:
            what = "is a file" if not others else f"holds {', '.join(others[:5])}"
            raise DataError(
                f"{self.root} {what}, which does not belong to a prepared dataset and would be"
                " lost; set data.dir to a new folder, or move it away"
            )

    def recover(self) -> None:
        """Delete the folders of interrupted runs, but not those of running processes. A dataset
        that was moved away, and whose successor did not get its place, moves back.

        An object store has no such folders.
        """
        if not self._aside:
            return
        parent, _, name = self._final.path.rpartition("/")
        filesystem = self._final.filesystem
        selector = pyarrow.fs.FileSelector(parent, allow_not_found=True)
        for info in filesystem.get_file_info(selector):
            for kind in (".writing-", ".replaced-"):
                if info.base_name.startswith(name + kind) and self._is_dead(
                    info, info.base_name[len(name + kind) :]
                ):
                    at = filesystem.get_file_info(self._final.path).type
                    if kind == ".replaced-" and at == pyarrow.fs.FileType.NotFound:
                        filesystem.move(info.path, self._final.path)
                    else:
                        Folder(filesystem, info.path).remove()

    def _is_dead(self, info: pyarrow.fs.FileInfo, mark: str) -> bool:
        host, _, pid = mark.rpartition("-")[0].rpartition("-")
        if host != socket.gethostname() or not pid.isdigit():
            return info.mtime is not None and time.time() - info.mtime.timestamp() > _STALE_S
        # an earlier attempt in this process, which has failed
        if int(pid) == os.getpid():
            return True
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False
