"""The answer log of a server: one JSON line per answer, with the user, the items, the version and
the propensities.

Why the request is logged too: off-policy evaluation later sends the same requests to another
version, to estimate how that version would have performed. Every replica appends to its own files,
one per day (UTC), so no replica waits for another. A line is written after its call is answered.
Only the owner can read the files, because they hold ids and histories as callers sent them. A file
is locked while a line is appended, so that :func:`remove_rows` can replace it at any time.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final
from uuid import uuid4

from recsys.errors import ConfigError, DataError, RequestError, SourceError
from recsys.serving.experiment_split import SIDES, Side
from recsys.serving.interleaving import BOTH
from recsys.serving.request_parsing import parse_requests
from recsys.serving.requests import Answer, AnyAnswer, AnyRequest, Request
from recsys.storage.beside import append_to, atomic_write

PREFIX: Final = "answers-"
_PIECE: Final = 1 << 20  # bytes
_LOG = logging.getLogger(__name__)


class AnswerLog:
    """Appends to a folder. A failed write is reported once and never fails a call."""

    def __init__(self, folder: str) -> None:
        self._folder, self._name = Path(folder), uuid4().hex[:12]
        self._failed = False
        with suppress(OSError):  # on another machine of a cluster the folder may not exist yet
            self._folder.mkdir(parents=True, exist_ok=True)

    def write(self, lines: Sequence[dict[str, Any]]) -> bool:
        """Append the lines; True where they were written."""
        now = datetime.now(UTC)
        path = self._folder / f"{PREFIX}{now:%Y%m%d}-{self._name}.jsonl"
        try:
            text = "".join(
                json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines
            )
            with _appending(path) as handle:
                # JSON can hold half of a surrogate pair in an id, which strict UTF-8 refuses
                append_to(handle, text.encode("utf-8", "surrogatepass"))
        except (OSError, ValueError) as error:
            if not self._failed:
                _LOG.error(
                    "serve.log: cannot write %s (%s); the server continues without a log",
                    path,
                    getattr(error, "strerror", None) or error,
                )
            self._failed = True
            return False
        # a failure after a recovery is reported again
        self._failed = False
        return True


@contextmanager
def _appending(path: Path) -> Iterator[int]:
    """The locked file to append to. A file that was replaced while this waited for its lock is
    opened again.

    Yields
    ------
    int
        Its file descriptor, which holds the lock until the block ends.
    """
    while True:
        # 0600: the lines hold ids and histories
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            _lock(handle)
            # the lock is of the file, not of the name; under the name may be a new file by now
            if _is_at(handle, path):
                yield handle
                return
        finally:
            os.close(handle)


def _lock(handle: int) -> None:
    """Lock a file; do nothing on a file system without locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def holds_rows(path: Path, is_theirs: Callable[[Sequence[bytes]], Sequence[bool]]) -> bool:
    """Whether a log file has rows for which ``is_theirs`` is true."""
    with path.open("rb") as file:
        return any(any(is_theirs(rows)) for rows in _pieces(file))


def remove_rows(path: Path, is_theirs: Callable[[Sequence[bytes]], Sequence[bool]]) -> int:
    """Remove rows from a log file, even while a server appends to it; returns how many were
    removed.

    The remaining rows are written to a temporary file, which then replaces the log file. Servers
    wait only while the rows that arrived in between are copied, and no row is lost.

    Parameters
    ----------
    path : Path
        The log file.
    is_theirs : Callable[[Sequence[bytes]], Sequence[bool]]
        Takes some rows and says for each whether to remove it.

    Raises
    ------
    OSError
        The file cannot be read or replaced.
    """  # noqa: DOC501
    if not holds_rows(path, is_theirs):
        return 0
    removed = -1
    while removed < 0:  # try again where another command replaced the file in between
        with path.open("r+b") as file, suppress(_Replaced), atomic_write(path) as aside:
            found = os.fstat(file.fileno())
            os.chmod(aside, found.st_mode & 0o777)
            with suppress(
                PermissionError
            ):  # only root can change the owner; the server must still be able to append
                os.chown(aside, found.st_uid, found.st_gid)
            with aside.open("wb") as kept:
                # most of the file without the lock, so that servers hardly wait
                early = _copy(file, kept, is_theirs)
                # held until the file is closed, which is after it was replaced
                _lock(file.fileno())
                late = _copy(file, kept, is_theirs, to_the_end=True)
            # two commands at the same time: replacing now would bring back what the other one
            # removed
            if not _is_at(file.fileno(), path):
                raise _Replaced
            removed = early + late
    return removed


class _Replaced(Exception):
    """Another process replaced the file that was read."""


def _copy(
    file: BinaryIO,
    kept: BinaryIO,
    is_theirs: Callable[[Sequence[bytes]], Sequence[bool]],
    to_the_end: bool = False,
) -> int:
    """Copy the rows that stay, from the current position of the file; returns how many were left
    out.
    """
    removed = 0
    for rows in _pieces(file, to_the_end):
        gone = is_theirs(rows)
        kept.writelines(row for row, is_gone in zip(rows, gone, strict=True) if not is_gone)
        removed += sum(gone)
    return removed


def _pieces(file: BinaryIO, to_the_end: bool = True) -> Iterator[list[bytes]]:
    """Rows in batches. An unfinished last row is left for later, unless ``to_the_end`` is true."""
    while rows := file.readlines(_PIECE):
        if not to_the_end and not rows[-1].endswith(b"\n"):
            # a server is just writing it; it is read again under the lock
            file.seek(-len(rows.pop()), os.SEEK_CUR)
            yield rows
            return
        yield rows


def line_of(
    request: Request, answer: Answer, model: str, version: str, side: str
) -> dict[str, Any]:
    """The log line of an answer.

    Parameters
    ----------
    request : Request
        The request that was answered.
    answer : Answer
        Its answer.
    model : str
        URI of the model that answered.
    version : str
        Its version.
    side : str
        Its side of an experiment; ``a`` without one, ``ab`` for a list merged from both.

    Returns
    -------
    dict[str, Any]
        Plain values for one JSON line; ``time`` is now, in UTC.
    """
    now = datetime.now(UTC)
    return {
        "answer_id": answer.answer_id,
        "time": now.isoformat(timespec="milliseconds"),
        "user_id": answer.user_id,
        "model": model,
        "version": version,
        "side": side,
        "source": answer.source,
        "offset": request.offset,
        "item_ids": answer.item_ids,
        **({} if answer.propensities is None else {"propensities": answer.propensities}),
        **({} if answer.teams is None else {"teams": answer.teams}),
        "request": request.model_dump(mode="json", exclude_unset=True),
    }


def lines_of(
    requests: Sequence[AnyRequest],
    answers: Sequence[AnyAnswer],
    models: Mapping[Side, tuple[str, str]],
) -> list[dict[str, Any]]:
    """The log lines of recommendations; ``models`` has the model and version of each side.

    Parameters
    ----------
    requests : Sequence[AnyRequest]
        Requests of a call.
    answers : Sequence[AnyAnswer]
        Their answers, in the same order; only recommendations are logged.
    models : Mapping[Side, tuple[str, str]]
        Side → model and version.

    Returns
    -------
    list[dict[str, Any]]
        One line per logged answer.
    """
    found = []
    for request, answer in zip(requests, answers, strict=True):
        if isinstance(request, Request) and isinstance(answer, Answer):
            if answer.teams is None:
                side: Side = "b" if answer.side == "b" else "a"
                found.append(line_of(request, answer, *models[side], side))
                continue
            line = line_of(request, answer, *models["a"], BOTH)
            found.append(
                {**line, "second": dict(zip(("model", "version"), models["b"], strict=True))}
            )
    return found


@dataclass(frozen=True)
class Logged:
    """One logged answer."""

    answer_id: str
    time: float  # seconds since the epoch
    user_id: str | None
    label: str  # the model that answered, and its version
    item_ids: list[str]
    propensities: list[float] | None
    request: Request
    # of a list merged from two models: the side that picked each item, and the second model
    teams: list[str] | None = None
    second: str = ""


def read_logs(paths: Sequence[str]) -> tuple[list[Logged], int]:
    """The answers of log files in order of time, and the number of incomplete lines.

    The last line of a file is incomplete where the server was killed while it wrote that line;
    such lines are left out.

    Raises
    ------
    SourceError
        A file is missing or unreadable.
    DataError
        A line is not a line of an answer log; the message names the file and the line.
    """
    found: dict[str, Logged] = {}
    num_cut = 0
    for path in _files(paths):
        try:
            content = path.read_bytes()
        except OSError as error:
            raise SourceError(f"compare.logs: cannot read {path} ({error.strerror})") from None
        rows = content.split(b"\n")
        num_cut += bool(rows.pop().strip())  # after the last line break
        for number, row in enumerate(rows, start=1):
            if row.strip():
                logged = _logged(row, f"compare.logs: {path}, line {number}")
                # by id: a file and its copy may both be named
                found[logged.answer_id] = logged
    if not found:
        raise DataError(
            f"compare.logs: {', '.join(paths)}: the log has no answers; start `recsys serve` with"
            " serve.log"
        )
    return sorted(found.values(), key=lambda one: (one.time, one.answer_id)), num_cut


def _files(paths: Sequence[str]) -> list[Path]:
    """The log files of a list of files, folders and glob patterns."""
    found: list[Path] = []
    for given in paths:
        path = Path(given)
        if path.is_dir():
            mine = sorted(path.glob(f"{PREFIX}*.jsonl"))
            if not mine:
                raise SourceError(
                    f"compare.logs: {given} has no {PREFIX}*.jsonl; give the folder of serve.log"
                )
        else:
            mine = [path] if path.is_file() else [Path(one) for one in sorted(glob.glob(given))]
            if not mine:
                raise SourceError(
                    f"compare.logs: {given} does not exist; give files, folders or globs of"
                    " serve.log"
                )
        found += mine
    # a file may match several of the patterns
    return list(dict.fromkeys(found))


def _logged(row: bytes, where: str) -> Logged:
    try:
        content = json.loads(row)
        answer_id = content["answer_id"]
        items = content["item_ids"]
        chances = content.get("propensities")
        time = datetime.fromisoformat(content["time"]).timestamp()
        label = _label(content)
        teams = content.get("teams")
        second = "" if teams is None else _label(content["second"])
        [request] = parse_requests([content["request"]])
    except (ValueError, KeyError, TypeError, AttributeError, RequestError) as error:
        raise DataError(
            f"{where}: not a line of an answer log ({type(error).__name__}: {str(error)[:120]});"
            " give files that `recsys serve` wrote to serve.log"
        ) from None
    if not (_are(items, str) and isinstance(answer_id, str)):
        raise DataError(
            f"{where}: answer_id must be a string and item_ids a list of strings; restore the file"
            " from a backup"
        )
    # off-policy estimates divide by the propensities
    if chances is not None and not (
        _are(chances, (int, float))
        and len(chances) == len(items)
        and all(0 < chance <= 1 for chance in chances)
    ):
        raise DataError(
            f"{where}: propensities must have one number per item, above 0 and at most 1; restore"
            " the file from a backup"
        )
    if teams is not None and not (
        _are(teams, str) and len(teams) == len(items) and set(teams) <= set(SIDES)
    ):
        raise DataError(
            f"{where}: teams must have 'a' or 'b' for every item; restore the file from a backup"
        )
    return Logged(answer_id, time, request.user_id, label, items, chances, request, teams, second)


def _label(content: Mapping[str, Any]) -> str:
    """The name of a model in a comparison."""
    label = str(content["model"])
    return label if label.startswith("models:") else f"{label} ({content['version']})"


def _are(values: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def check_folder(folder: str) -> None:
    """Create the folder of a log and check that it is writable.

    Raises
    ------
    ConfigError
        It is not writable.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        probe = Path(folder) / f".{uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"serve.log: {folder} is not writable ({error.strerror}); give another folder"
        ) from None
