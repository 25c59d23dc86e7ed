"""One writer at a place that has no file locks: an object that says who is at work.

Why a conditional write: two writers who both look first and write then would both begin. S3 refuses the second
``PutObject`` with ``If-None-Match: *`` itself. Servers that know no conditions, and other kinds of storage, get the
next best: write, wait for nothing, and read back who was last; two that begin within the same moment may pass there.

The object stays behind when a writer is killed. The next one on the same machine sees that the process is gone and
takes over; one elsewhere cannot know, and is told which object to delete.
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
from recsys.storage.places import filesystem_of, reaching, read_bytes, s3_client
from recsys.storage.uris import without_query

_TRIES: Final = 3
_TAKEN: Final = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
_NO_CONDITIONS: Final = ("NotImplemented", "501")


@dataclass(frozen=True)
class Holder:
    """Who holds a lock."""

    work: str
    pid: int
    host: str
    machine: str  # the same for processes that see each other's numbers
    since: str
    token: str

    @property
    def is_gone(self) -> bool:
        """Whether its process was on this machine and has ended."""
        if not self.machine or self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False


@contextmanager
def holding(place: str, work: str, free: str) -> Iterator[None]:
    """Hold the lock object at a remote place for the time of the block.

    Parameters
    ----------
    place : str
        URI of the object.
    work : str
        what is being done, for those who are refused, such as "`recsys run`".
    free : str
        what is held, and how to do without it: "RUN is in use by … ; FREE".

    Raises
    ------
    ArtifactError
        another one holds it.
    StorageError
        the place cannot be reached or written to, or boto3 is missing.
    """
    since = datetime.now(UTC).isoformat(timespec="seconds")
    own = Holder(work, os.getpid(), socket.gethostname(), _machine(), since, uuid.uuid4().hex)
    lock = _S3Lock(place) if place.startswith("s3://") else _PlainLock(place)
    with reaching(place, "write to"):
        _acquire(lock, own, place, free)
    try:
        yield
    finally:
        with suppress(Exception), reaching(place):  # what happened inside matters more than a lock left behind
            holder, _ = lock.read()
            if holder is not None and holder.token == own.token:
                lock.delete()


def _acquire(lock: _S3Lock | _PlainLock, own: Holder, place: str, free: str) -> None:
    holder, version = None, ""
    for _ in range(_TRIES):
        if lock.write(own, version):
            return
        holder, version = lock.read()
        if holder is None:
            version = ""  # let go in between
        elif holder.token == own.token:  # an attempt that was answered too late
            return
        elif not holder.is_gone:
            break
    if holder is None:
        raise ArtifactError(f"{without_query(place)} is taken and let go by others at this very moment; try again")
    raise ArtifactError(
        f"{without_query(place).rpartition('/')[0]} is in use by {holder.work}, process {holder.pid} on "
        f"{holder.host}, since {holder.since}; {free}. If that process is no longer there, delete the object "
        f"{without_query(place)}"
    )


class _S3Lock:
    """By conditional writes."""

    def __init__(self, place: str) -> None:
        self._client = s3_client(place)
        body = without_query(place).removeprefix("s3://")
        bucket, _, key = body.partition("/")
        self._at = {"Bucket": bucket, "Key": key}

    def write(self, holder: Holder, version: str) -> bool:
        """Write where nothing is, or over this version; False when another one is there."""
        condition = {"IfMatch": version} if version else {"IfNoneMatch": "*"}
        try:
            self._client.put_object(**self._at, Body=_dump(holder), **condition)
        except Exception as error:
            code = _code(error)
            if code in _NO_CONDITIONS:
                return self._write_plainly(holder, version)
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
        """Who holds it, None where it is free; and the version of the object."""
        try:
            found = self._client.get_object(**self._at)
        except Exception as error:
            if _code(error) in ("NoSuchKey", "404"):
                return None, ""
            raise
        return _parse(found["Body"].read()), str(found["ETag"])

    def delete(self) -> None:
        self._client.delete_object(**self._at)


class _PlainLock:
    """By any Arrow filesystem: look, write, look again."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._filesystem, self._path = filesystem_of(place)

    def write(self, holder: Holder, version: str) -> bool:
        """As :meth:`_S3Lock.write`; the version is the token of whom is there."""
        found, now = self.read()
        if found is not None and now != version:
            return False
        self._filesystem.create_dir(self._path.rpartition("/")[0], recursive=True)
        with self._filesystem.open_output_stream(self._path) as stream:
            stream.write(_dump(holder))
        return self.read()[1] == holder.token

    def read(self) -> tuple[Holder | None, str]:
        try:
            found = _parse(read_bytes(self._place))
        except FileNotFoundError:
            return None, ""
        return found, found.token

    def delete(self) -> None:
        self._filesystem.delete_file(self._path)


def _dump(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def _parse(content: bytes) -> Holder:
    """What :func:`_dump` wrote; something else is held by nobody knows whom."""
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):
        return Holder("something unknown", 0, "an unknown machine", "", "an unknown time", "")


def _code(error: BaseException) -> str:
    """The code of a botocore ClientError, empty for other errors."""
    response: Any = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _machine() -> str:
    """Boot and process namespace: a number means the same process only within both."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
