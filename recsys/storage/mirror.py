"""A local working folder that mirrors a remote folder.

Why: libraries that write most artefacts need a real folder (safetensors, MLflow, plots), and a
model is read many times. So a stage works locally. Each artefact is uploaded when it is finished,
and downloaded when it is first needed. The remote folder is authoritative; the local folder is
temporary.

A single object is written completely or not at all. A folder of several objects is complete if its
*marker* exists, the file that its reader opens first: it is removed before any other change, and
written last.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import pyarrow.fs

from recsys.storage.filesystems import filesystem_of, storage_errors
from recsys.storage.temporary import temporary_folder
from recsys.storage.uris import within

MARKERS: Final = ("manifest.json", "bundle.json", "trained.json", "origin.json")


class Mirror:
    """The local folder ``root`` and the remote folder ``uri``."""

    def __init__(self, root: Path, uri: str) -> None:
        self.root, self.uri = root, uri
        self._fetched: set[str] = set()
        # Size and modification time of the files that are equal on both sides.
        self._known: dict[Path, tuple[int, int]] = {}

    def part(self, name: str) -> Mirror:
        """The mirror of a subfolder; both know which files are uploaded."""
        mirror = Mirror(self.root / name, within(self.uri, name))
        mirror._known = self._known
        return mirror

    def fetch(self, name: str) -> Path:
        """The local path of a file or folder; downloaded the first time, unless it exists
        locally.
        """
        path = self.root / name
        if name not in self._fetched:
            self._fetched.add(name)
            if not path.exists():
                download(within(self.uri, name), path)
                self._remember(path)
        return path

    def fetch_small(self, leave: tuple[str, ...]) -> None:
        """Download all files directly in the remote folder, except those in ``leave``."""
        self.fetch_all(leave, (pyarrow.fs.FileType.File,))

    def fetch_all(
        self,
        leave: tuple[str, ...],
        kinds: tuple[pyarrow.fs.FileType, ...] = (
            pyarrow.fs.FileType.File,
            pyarrow.fs.FileType.Directory,
        ),
    ) -> None:
        """Download all files and folders of the remote folder, except those in ``leave``."""
        filesystem, inner = filesystem_of(self.uri)
        with storage_errors(self.uri):
            found = filesystem.get_file_info(pyarrow.fs.FileSelector(inner, allow_not_found=True))
        for info in found:
            if info.type in kinds and info.base_name not in leave:
                self.fetch(info.base_name)

    def publish(self, path: Path) -> None:
        """Upload a finished file or folder; do nothing if it does not exist."""
        name = path.relative_to(self.root).as_posix()
        if path.is_dir():
            upload(path, within(self.uri, name))
        elif path.is_file():
            _copy_up(path, within(self.uri, name))
        self._remember(path)

    def publish_changed(self) -> None:
        """Upload all other files that changed since they were downloaded or uploaded."""
        for path in sorted(_files(self.root), key=_checksums_last):
            if self._known.get(path) != _state(path):
                self.publish(path)

    def remove_missing(self) -> None:
        """Delete remote files that were deleted locally since they were downloaded or uploaded."""
        for path in [path for path in self._known if not path.exists()]:
            self.remove(path)
            del self._known[path]

    def remove(self, path: Path) -> None:
        """Delete a file or folder on both sides."""
        name = path.relative_to(self.root).as_posix()
        self._fetched.add(name)
        remove(within(self.uri, name))
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def _remember(self, path: Path) -> None:
        for file in _files(path) if path.is_dir() else [path] if path.is_file() else []:
            self._known[file] = _state(file)


def upload(folder: Path, uri: str) -> None:
    """Replace a remote folder by a local one; the markers are written last."""
    remove(uri)
    for path in sorted(_files(folder), key=_checksums_last):
        _copy_up(path, within(uri, path.relative_to(folder).as_posix()))


def download(uri: str, path: Path) -> bool:
    """Download a remote file or folder to a local path; False if it does not exist."""
    filesystem, inner = filesystem_of(uri)
    local = pyarrow.fs.LocalFileSystem()
    with storage_errors(uri):
        kind = filesystem.get_file_info(inner).type
        if kind == pyarrow.fs.FileType.NotFound:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == pyarrow.fs.FileType.File:
            pyarrow.fs.copy_files(
                inner, str(path), source_filesystem=filesystem, destination_filesystem=local
            )
            return True
        for info in filesystem.get_file_info(pyarrow.fs.FileSelector(inner, recursive=True)):
            if info.type == pyarrow.fs.FileType.File:
                target = path / info.path[len(inner) + 1 :]
                target.parent.mkdir(parents=True, exist_ok=True)
                pyarrow.fs.copy_files(
                    info.path,
                    str(target),
                    source_filesystem=filesystem,
                    destination_filesystem=local,
                )
    return True


def downloaded(uri: str) -> Path | None:
    """A temporary local copy of a remote folder, deleted when the process ends; None if there is no
    such folder.
    """
    folder = temporary_folder()
    return folder / "copy" if download(uri, folder / "copy") else None


def remove(uri: str) -> None:
    """Delete a remote file or folder, its markers first; do nothing if it does not exist."""
    filesystem, inner = filesystem_of(uri)
    with storage_errors(uri, "write to"):
        kind = filesystem.get_file_info(inner).type
        if kind == pyarrow.fs.FileType.File:
            filesystem.delete_file(inner)
        elif kind == pyarrow.fs.FileType.Directory:
            for marker in MARKERS:
                if filesystem.get_file_info(f"{inner}/{marker}").type == pyarrow.fs.FileType.File:
                    filesystem.delete_file(f"{inner}/{marker}")
            filesystem.delete_dir(inner)


def _copy_up(path: Path, uri: str) -> None:
    """Upload with Arrow's own copy: a stream that Python closes on an interrupt would leave half an
    object.
    """
    filesystem, inner = filesystem_of(uri)
    with storage_errors(uri, "write to"):
        if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
            filesystem.create_dir(inner.rpartition("/")[0], recursive=True)
        pyarrow.fs.copy_files(
            str(path),
            inner,
            source_filesystem=pyarrow.fs.LocalFileSystem(),
            destination_filesystem=filesystem,
        )


def _files(folder: Path) -> list[Path]:
    """All files below a folder, except hidden files and folders, which are still being written."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [
        path
        for path in found
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _checksums_last(path: Path) -> tuple[bool, Path]:
    return path.name in MARKERS, path


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
