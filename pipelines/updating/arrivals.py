"""Event files that arrive while a training runs: a thread appends them to the newest dataset.

Each append makes a new dataset, which links the unchanged files of the one before. So a training
keeps reading its own dataset, and the next one starts from the newest.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import pyarrow.fs

from pipelines.plumbing.newer_source import with_newer_events
from pipelines.plumbing.progress import Progress
from pipelines.plumbing.run_folder import RunFolder
from pipelines.prepare import prepare
from recsys import schema
from recsys.config import CanonicalSource, Config
from recsys.config.values import seconds_of
from recsys.data.dataset import PreparedDataset
from recsys.errors import SourceError, StorageError, UserError
from recsys.preparation.appendable import NothingNew
from recsys.sources.files import find
from recsys.storage.filesystems import filesystem_of
from recsys.storage.uris import within

FOLDER: Final = "arrived"  # in the run folder: a dataset for each append

_Signature = tuple[int, int | None]  # size and time of the last change
_Tables = frozenset[tuple[str, _Signature | str]]  # files of all tables except the events


@dataclass(frozen=True)
class Arrived:
    """A dataset with all files that had arrived; ``first_seen`` is the ``time.monotonic`` at which
    the first file came that no training has had.
    """

    dataset: PreparedDataset
    num_files: int
    first_seen: float

    def with_earlier(self, earlier: Arrived | None) -> Arrived:
        """Count the files of an earlier dataset, which no training has had either, as well."""
        if earlier is None:
            return self
        first_seen = min(self.first_seen, earlier.first_seen)
        return Arrived(self.dataset, self.num_files + earlier.num_files, first_seen)


class Arrivals:
    """Watch the files of ``update.events`` and keep a dataset with all of them.

    A file is read when its size and its time of change stay the same from one look to the next. A
    file that cannot be read is reported once and skipped until it changes, or until another table
    changes, which may be the cause: the catalogue may be half-written at this moment. While a
    storage does not answer, every look tries again.

    Parameters
    ----------
    config : Config
        The configuration of the update; ``update.follow`` is the time between two looks.
    folder : RunFolder
        The run folder; the datasets go to its folder ``arrived``.
    earlier : PreparedDataset
        The dataset to append to.
    """

    def __init__(self, config: Config, folder: RunFolder, earlier: PreparedDataset) -> None:
        self._config, self._newest = config, earlier
        self._every = seconds_of(config.update.follow)
        self._handled: dict[str, _Signature] = {}
        # files that could not be read, each with the state of the other tables at that time
        self._left_out: dict[str, tuple[_Signature, _Tables]] = {}
        self._last_look: dict[str, _Signature] = {}
        self._first_seen: dict[str, float] = {}  # of files that no dataset has yet
        # file or pattern that a storage failed for → its message, which is shown once
        self._outages: dict[str, str] = {}
        self._has_looked = False
        self._waiting: Arrived | None = None  # for a training
        self._last_arrival = time.monotonic()
        self._changed = threading.Condition()
        self._ended = False
        self._error: Exception | None = None
        # its own lines: the training says its own at the same time
        self._own = RunFolder(folder.root, Progress(sys.stdout, folder.root / "run.log"))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch in a thread during the block; an append that has begun is finished first."""
        thread = threading.Thread(target=self._watch, name="arrivals", daemon=True)
        thread.start()
        try:
            yield
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
            thread.join()

    def next(self, idle_s: float) -> Arrived | None:
        """Wait for a dataset with newer files; the caller trains on it, so it is kept.

        Parameters
        ----------
        idle_s : float
            Seconds without a newer file after which this gives up; 0: never.

        Returns
        -------
        Arrived | None
            The newest dataset, or None after ``idle_s`` without a file.

        Raises
        ------
        Exception
            The thread failed.
        """
        with self._changed:
            while self._waiting is None and self._error is None:
                left = idle_s - (time.monotonic() - self._last_arrival)
                # a storage may never answer again; the next command reads these files
                is_idle = self._first_seen.keys() <= self._outages.keys()
                if idle_s and left <= 0 and is_idle:
                    return None
                self._changed.wait(min(left, 1.0) if idle_s and left > 0 else 1.0)
            if self._error is not None:
                raise self._error
            arrived, self._waiting = self._waiting, None
            assert arrived is not None
            return arrived

    def _watch(self) -> None:
        try:
            while not self._ended:
                if ready := self._look():
                    self._append(ready)
                with self._changed:
                    if not self._ended:
                        self._changed.wait(self._every)
        except Exception as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _look(self) -> dict[str, _Signature]:
        """The files that are new or changed, and complete."""
        now: dict[str, _Signature] = {}
        for pattern in self._config.update.events:
            try:
                found = find([pattern], "update.events")
            except SourceError:  # nothing there yet
                continue
            except StorageError as error:
                # at the first look the name may be wrong
                if not self._has_looked:
                    raise
                self._report_outage(pattern, error)
                continue
            now |= {file.path: (file.size, file.modified) for file in found}
        tables = self._tables() if self._left_out else frozenset()
        fresh = {
            path: sign
            for path, sign in now.items()
            if self._handled.get(path) != sign and self._left_out.get(path) != (sign, tables)
        }
        ready = {path: sign for path, sign in fresh.items() if self._last_look.get(path) == sign}
        self._last_look, self._has_looked = now, True
        with self._changed:
            self._first_seen = {
                path: self._first_seen.get(path, time.monotonic()) for path in fresh
            }
        return ready

    def _append(self, ready: dict[str, _Signature]) -> None:
        """Append the files; if they cannot be read together, one after the other."""
        tables = self._tables()
        try:
            self._add(list(ready))
        except NothingNew:
            self._handled |= ready
            self._own.progress(f"{_named(list(ready))}: the dataset has these events already")
        except UserError as error:
            if len(ready) == 1 and isinstance(error, StorageError):
                self._report_outage(next(iter(ready)), error)
                return  # the next look tries it again
            if len(ready) > 1:
                for path, sign in ready.items():
                    self._append({path: sign})
                return
            path, sign = next(iter(ready.items()))
            self._left_out[path] = (sign, tables)
            self._own.progress(f"{path} is skipped until it, or another table, changes: {error}")
        else:
            self._handled |= ready
        self._settle(ready)

    def _settle(self, ready: dict[str, _Signature]) -> None:
        """Wait for these files no longer."""
        with self._changed:
            for path in ready:
                self._first_seen.pop(path, None)
                self._outages.pop(path, None)
            self._last_arrival = time.monotonic()

    def _tables(self) -> _Tables:
        """The files of the source's tables beside the events, as they are now."""
        source = self._config.data.source
        if not isinstance(source, CanonicalSource):  # `_add` refuses it
            return frozenset()
        names = (name for name in schema.FILE_TABLES if name != schema.EVENTS.name)
        patterns = [pattern for name in names for pattern in getattr(source, name)]
        patterns += [pattern for files in source.lookup.values() for pattern in files]
        found: set[tuple[str, _Signature | str]] = set()
        for pattern in patterns:
            try:
                files = find([pattern])
            except UserError as error:
                found.add((pattern, str(error)))
            else:
                found |= {(file.path, (file.size, file.modified)) for file in files}
        return frozenset(found)

    def _report_outage(self, what: str, error: StorageError) -> None:
        """Say once that a storage fails for a file or a pattern."""
        with self._changed:
            is_new = self._outages.get(what) != str(error)
            self._outages[what] = str(error)
        if is_new:
            follow = self._config.update.follow
            self._own.progress(f"cannot read {what} yet, trying again every {follow}: {error}")

    def _add(self, paths: list[str]) -> None:
        config = self._config.model_copy(
            update={
                "data": self._config.data.model_copy(update={"dir": self._next_folder()}),
                "update": self._config.update.model_copy(update={"events": paths}),
            }
        )
        self._newest = prepare(with_newer_events(config), self._own, earlier=self._newest)
        seen = min(self._first_seen[path] for path in paths)
        self._own.progress(
            f"{_named(paths)}: prepared {time.monotonic() - seen:.1f} s after"
            f" {'it was' if len(paths) == 1 else 'the first was'} seen;"
            f" {self._newest.manifest.counts['events']:,} events in all"
        )
        with self._changed:
            earlier = self._waiting
            self._waiting = Arrived(self._newest, len(paths), seen).with_earlier(earlier)
            self._changed.notify_all()
        if earlier is not None:  # no training has taken it
            system, path = filesystem_of(earlier.dataset.root)
            system.delete_dir(path)

    def _next_folder(self) -> str:
        """A folder for a dataset; an earlier command may have left others, which models use."""
        every = within(self._config.run.dir, FOLDER)
        system, path = filesystem_of(every)
        found = system.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True))
        numbers = (int(info.base_name) for info in found if info.base_name.isdigit())
        return within(every, f"{max(numbers, default=0) + 1:06d}")


def _named(paths: list[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{len(paths)} files, {paths[0]} …"
