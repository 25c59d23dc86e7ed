"""Locks for storage without file locks: an object that names the writer.

Why a conditional write: two writers that first read and then write could both start. S3 itself
refuses the second ``PutObject`` with ``If-None-Match: *``. On servers without conditions, and on
other storage, a writer writes and then reads back which writer was last. There two writers that
start at the same time may both get the lock.

The object stays if a writer is killed. The next writer on the same machine sees that the process
has ended and takes the lock. A writer on another machine cannot see that; its error names the
object to delete.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from recsys.errors import ArtifactError
from recsys.storage.filesystems import filesystem_of, read_bytes, s3_client, storage_errors
from recsys.storage.uris import without_query

_TRIES: Final = 3
_TAKEN: Final = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
_NO_CONDITIONS: Final = ("NotImplemented", "501")


@dataclass(frozen=True)
class Holder:
    """The holder of a lock."""

    work: str
    pid: int
    host: str
    machine: str  # equal for processes that see each other's process ids
    since: str
    token: str

    @property
    def is_gone(self) -> bool:
        """Whether the holder's process was on this machine and has ended."""
        return bool(self.machine) and self.machine == _machine() and not is_alive(self.pid)


def is_alive(pid: int) -> bool:
    """Whether this machine has a process with this id."""
    try:
        # signal 0 only asks whether the process exists
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # of another user
        return True
    return True


def this_process() -> str:
    """A text that names this process among those of all machines, for :func:`has_ended`."""
    return f"{os.getpid()} {_machine()}"


def has_ended(process: str) -> bool:
    """Whether a process that :func:`this_process` has named was on this machine and has ended.

    >>> has_ended(this_process()), has_ended(""), has_ended("1 another machine")
    (False, False, False)
    """
    pid, _, machine = process.partition(" ")
    return pid.isdecimal() and machine == _machine() != "" and not is_alive(int(pid))


@contextmanager
def holding(uri: str, work: str, free: str) -> Iterator[None]:
    """Hold the lock object at a remote URI during the block.

    Parameters
    ----------
    uri : str
        URI of the object.
    work : str
        Name of the work, for the error of other writers, such as "`recsys run`".
    free : str
        Cure in the error of other writers: "RUN is in use by … ; FREE".

    Raises
    ------
    ArtifactError
        Another writer holds the lock.
    StorageError
        The URI cannot be reached or written to, or boto3 is missing.
    """
    since = datetime.now(UTC).isoformat(timespec="seconds")
    own = Holder(work, os.getpid(), socket.gethostname(), _machine(), since, uuid.uuid4().hex)
    lock = _S3Lock(uri) if uri.startswith("s3://") else _PlainLock(uri)
    with storage_errors(uri, "write to"):
        _acquire(lock, own, uri, free)
    try:
        yield
    finally:
        with (
            suppress(Exception),
            storage_errors(uri),
        ):  # an error of the block is more important than a lock that stays
            holder, _ = lock.read()
            # another writer may have taken a lock that looked abandoned; its lock must stay
            if holder is not None and holder.token == own.token:
                lock.delete()


def _acquire(lock: _S3Lock | _PlainLock, own: Holder, uri: str, free: str) -> None:
    holder, version = None, ""
    # a lock may be released between the failed write and the read; a few rounds are enough
    for _ in range(_TRIES):
        if lock.write(own, version):
            return
        holder, version = lock.read()
        if holder is None:
            version = ""  # released in between
        elif holder.token == own.token:  # an earlier attempt succeeded, but its answer was late
            return
        elif not holder.is_gone:
            break
    if holder is None:
        raise ArtifactError(
            f"{without_query(uri)} is locked and released by other writers at this time; try again"
        )
    raise ArtifactError(
        f"{without_query(uri).rpartition('/')[0]} is in use by {holder.work}, process"
        f" {holder.pid} on {holder.host}, since {holder.since}; {free}. If that process has ended,"
        f" delete the object {without_query(uri)}"
    )


class _S3Lock:
    """A lock with conditional writes to S3."""

    def __init__(self, uri: str) -> None:
        self._client = s3_client(uri)
        body = without_query(uri).removeprefix("s3://")
        bucket, _, key = body.partition("/")
        self._at = {"Bucket": bucket, "Key": key}

    def write(self, holder: Holder, version: str) -> bool:
        """Write a new object, or replace this version; False if another object exists."""
        condition = {"IfMatch": version} if version else {"IfNoneMatch": "*"}
        try:
            self._client.put_object(**self._at, Body=_dump(holder), **condition)
        except Exception as error:
            code = _code(error)
            # some servers with an S3 interface do not know conditional writes
            if code in _NO_CONDITIONS:
                return self._write_plainly(holder, version)
            # with a version, a missing object means that another writer took and released it in
            # between
            if code in _TAKEN or (version and code in ("NoSuchKey", "404")):
                return False
            raise
        return True

    def _write_plainly(self, holder: Holder, version: str) -> bool:
        found, now = self.read()
        if found is not None and now != version:
            return False
        self._client.put_object(**self._at, Body=_dump(holder))
        found, _ = self.read()
        return found is not None and found.token == holder.token

    def read(self) -> tuple[Holder | None, str]:
        """The holder, None if the lock is free, and the version of the object."""
        try:
            found = self._client.get_object(**self._at)
        except Exception as error:
            if _code(error) in ("NoSuchKey", "404"):
                return None, ""
            raise
        return _parse(found["Body"].read()), str(found["ETag"])

    def delete(self) -> None:
        """Release the lock."""
        self._client.delete_object(**self._at)


class _PlainLock:
    """A lock on any Arrow filesystem: read, write, read again."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._filesystem, self._path = filesystem_of(uri)

    def write(self, holder: Holder, version: str) -> bool:
        """As :meth:`_S3Lock.write`; the version is the token of the present holder."""
        found, now = self.read()
        if found is not None and now != version:
            return False
        self._filesystem.create_dir(self._path.rpartition("/")[0], recursive=True)
        with self._filesystem.open_output_stream(self._path) as stream:
            stream.write(_dump(holder))
        return self.read()[1] == holder.token

    def read(self) -> tuple[Holder | None, str]:
        """The holder, None if the lock is free, and its token."""
        try:
            found = _parse(read_bytes(self._uri))
        except FileNotFoundError:
            return None, ""
        return found, found.token

    def delete(self) -> None:
        """Release the lock."""
        self._filesystem.delete_file(self._path)


def _dump(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def _parse(content: bytes) -> Holder:
    """Read the output of :func:`_dump`; any other content gives an unknown holder."""
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):
        return Holder("something unknown", 0, "an unknown machine", "", "an unknown time", "")


def _code(error: BaseException) -> str:
    """The code of a botocore ClientError, "" for other errors."""
    response: Any = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _machine() -> str:
    """Boot id and process namespace; a process id is unique only within both."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
