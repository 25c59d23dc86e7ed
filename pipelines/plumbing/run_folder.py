"""The run folder: the stages of a run write their artefacts there, one command at a time.

Layout::

    config.yaml              merged configuration of the last run, prepare, train, evaluate, update
                             or tune, without user and password of tracking.uri: these come from
                             the command line or the environment
    history.jsonl            one line per command: time, verb, release, keys changed since the last
                             one
    run.log                  progress lines of all stages
    dataset/                 prepared dataset, unless data.dir names another folder
    auto.json                the choice of ``model: auto``, with its reasons
    trials/                  trials of its search
    checkpoints/ model/      written by train
    final/                   final model, trained on all events (train.final)
    metrics.json report.html written by evaluate
    drift.json               written by update: drift of newer events from the parent's events
    bundle/ registered.json  written by register
    promotion.json promotion.md
                             written by promote: the last decision
    compare.json             written by compare: this run against another one
    recommendations.parquet  written by recommend: lists of every user
    answers/                 written by recommend: one file per file of requests
    tracking.json            MLflow run of these stages
    copies/                  paths of exports and saved models of this run, for forget
    arrived/ round-0001/ rounds.jsonl begun.json
                             written by update with update.follow: datasets with the files that
                             arrived, a run folder for each round, a line for each round, and what
                             the newest round began with

If ``run.dir`` is a URI such as ``s3://bucket/run``, the stages work in a temporary folder. Each
finished artefact is copied to the URI, and is fetched from there when it is first needed, on any
machine. Many machines write the dataset and the checkpoints, so these are written to the URI
directly.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from pipelines.plumbing.config_changes import changes_since, shapes_results
from pipelines.plumbing.progress import Progress
from recsys import __version__
from recsys.config import Config, dump_config, redacted
from recsys.errors import ArtifactError, ConfigError, UserError
from recsys.storage.temporary import temporary
from recsys.storage.uris import is_remote, within, without_query

if TYPE_CHECKING:
    from pipelines.plumbing.budget import Budget
    from recsys.registry.tracking import Tracker
    from recsys.storage.mirror import Mirror


# other verbs use the results of these
_CONFIGURING: Final = ("run", "prepare", "train", "evaluate", "update", "tune")
ANSWERS: Final = "answers"
PROOFS: Final = "forgotten"
_HISTORY: Final = "history.jsonl"
_RECORDS: Final = ("config.yaml", _HISTORY, "tracking.json")  # of every command
_CHOSEN: Final = ("model", "train")  # sections that `model: auto` decides
_REDACTED: Final = (
    "# secrets are shown as ***: give these keys on the command line, or as $VARIABLE\n"
)


class RunFolder:
    """Paths and small files of one run folder, and the progress lines of its stages.

    ``root`` is the local folder; ``remote`` is the URI that it mirrors, None if ``run.dir`` is
    local.
    """

    def __init__(self, root: Path, progress: Progress, remote: Mirror | None = None) -> None:
        self.root, self.progress, self.remote = root, progress, remote
        self.tracker: Tracker | None = None  # open while a command runs
        self.budget: Budget | None = None  # the time budget, if the run has one
        self.search_run = ""  # MLflow run of the search that chose the settings
        # checkpoints of a search's trials, by the digest of the training that continues from it
        self.head_starts: dict[str, Path] = {}
        self.timing: dict[str, float] = {}  # seconds of the parts of a run, for the report
        # writes the report again, with metrics that a later stage has completed
        self.rewrite_report: Callable[[dict[str, Any]], None] | None = None

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Measure the block as this part of ``timing``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.timing[part] = time.perf_counter() - started

    def turn_to(self, part: str) -> None:
        """Count the time of the budget for this part from now on."""
        if self.budget is not None:
            self.budget.turn_to(part)

    @property
    def checkpoints(self) -> Path:
        """Checkpoints of the training."""
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        """The trained model."""
        return self.fetch("model")

    @property
    def final(self) -> Path:
        """The final model, trained on all events."""
        return self.fetch("final")

    @property
    def metrics(self) -> Path:
        """The metrics of the evaluation."""
        return self.root / "metrics.json"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.root / "report.html"

    @property
    def bundle(self) -> Path:
        """The bundle: everything that is needed to answer requests."""
        return self.fetch("bundle")

    @property
    def drift(self) -> Path:
        """The drift that an update measured."""
        return self.root / "drift.json"

    @property
    def registered(self) -> Path:
        """The registration."""
        return self.root / "registered.json"

    @property
    def promotion(self) -> Path:
        """The last promotion decision."""
        return self.root / "promotion.json"

    @property
    def recommendations(self) -> Path:
        """The recommendations for all users."""
        return self.root / "recommendations.parquet"

    @property
    def answers(self) -> list[Path]:
        """All files of recommendations: for all users, and for requests."""
        return [self.recommendations, *sorted((self.root / ANSWERS).glob("*.parquet"))]

    @property
    def config(self) -> Path:
        """The merged configuration."""
        return self.root / "config.yaml"

    def fetch(self, name: str) -> Path:
        """The local path of an artefact; a remote one is fetched when it is first needed."""
        return self.root / name if self.remote is None else self.remote.fetch(name)

    def publish(self, *paths: Path) -> None:
        """Copy finished artefacts to a remote run folder; nothing to do for a local one."""
        if self.remote is not None:
            for path in paths:
                self.remote.publish(path)

    def fetch_all(self) -> None:
        """Fetch everything of a remote run folder except the dataset, which is read remotely."""
        if self.remote is not None:
            self.remote.fetch_all(leave=(".lock", "dataset", "dataset.lock"))

    def settle(self) -> None:
        """Make a remote run folder equal to the local one: copy changed files, delete removed
        ones.
        """
        if self.remote is not None:
            self.remote.publish_changed()
            self.remote.remove_missing()

    def part(self, name: str) -> RunFolder:
        """A folder inside this one with its own artefacts, for example of a search."""
        root = self.root / name
        root.mkdir(exist_ok=True)
        return RunFolder(root, self.progress, self.remote and self.remote.part(name))

    def shown(self, path: Path) -> str:
        """The path or URI of an artefact for people and other machines."""
        if self.remote is None:
            return str(path)
        return within(self.remote.uri, path.relative_to(self.root).as_posix())

    def write_json(self, path: Path, content: Any) -> None:
        """Write a JSON file atomically."""
        write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        self.publish(path)

    def read_json(self, path: Path, cure: str) -> dict[str, Any]:
        """Read what :meth:`write_json` wrote.

        Raises
        ------
        ArtifactError
            The file is missing or damaged; ``cure`` says which stage writes it.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ArtifactError(f"{path} does not exist; {cure}") from None
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path} is damaged ({error}); {cure}") from None
        if not isinstance(content, dict):
            raise ArtifactError(
                f"{path} is damaged (expected an object, got {type(content).__name__}); {cure}"
            )
        return content

    def forget_model(self) -> None:
        """Remove the trained model and everything made from it, before a new model is saved."""
        for path in (self.registered, self.metrics, self.report, self.recommendations):
            self.forget(path)
        for name in ("bundle", "model", "final", ANSWERS):
            self.forget(self.root / name)

    def forget(self, path: Path) -> None:
        """Delete a file or folder, locally and in a remote run folder."""
        if self.remote is not None:
            self.remote.remove(path)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def record(self, config: Config, verb: str) -> None:
        """Append to ``history.jsonl`` and, for verbs that make results, write ``config.yaml``.

        Prints which keys differ from the earlier ``config.yaml``, of those that change data, model
        or metrics. Credentials are not written. If auto will choose the model, its sections do not
        count as a difference, and ``config.yaml`` is written after the choice
        (:meth:`write_config`).
        """
        public = redacted(config)
        changed = changes_since(self.config, public)
        if not config.has_model:
            changed = {
                key: pair for key, pair in changed.items() if key.split(".")[0] not in _CHOSEN
            }
        shaping = {key: pair for key, pair in changed.items() if shapes_results(key)}
        if shaping:
            shown = "\n  ".join(_shown_changes(shaping))
            where = self.shown(self.config).removesuffix(f"/{self.config.name}")
            self.progress(f"the configuration differs from the last one of {where}:\n  {shown}")
        line = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "verb": verb,
            "release": __version__,
            "changed": {
                key: {"before": before, "after": after} for key, (before, after) in changed.items()
            },
        }
        from recsys.storage.beside import append_whole

        text = json.dumps(line, ensure_ascii=False) + "\n"
        append_whole(self.root / _HISTORY, text.encode())
        self.publish(self.root / _HISTORY)
        # a configuration without a model must not replace one with the model that auto chose
        if verb in _CONFIGURING and (config.has_model or not self.config.is_file()):
            self.write_config(config)
        self.progress.has_lines = False  # the work begins now

    def write_config(self, config: Config) -> None:
        """Write ``config.yaml``, without credentials."""
        public = redacted(config)
        write_atomically(self.config, ("" if public == config else _REDACTED) + dump_config(public))
        self.publish(self.config)


@contextmanager
def open_run(
    config: Config, verb: str, stream: TextIO | None = None, locks: bool = True
) -> Iterator[RunFolder]:
    """Create the run folder, lock it if ``locks``, record the configuration, and open it for a
    stage.

    A command without the lock writes nothing to a remote run folder, because another command may be
    writing there. If the input is wrong, a new folder in which the command has made nothing is
    removed again.

    Parameters
    ----------
    config : Config
        The whole configuration; ``run.dir`` names the folder.
    verb : str
        The command, for the record and for the message of the lock.
    stream : TextIO | None
        Where progress is written besides ``run.log``; None: standard output.
    locks : bool
        Whether to lock the folder against other commands; false for those that only read it.

    Yields
    ------
    RunFolder
        The folder; a temporary one for a command without the lock on a remote run.

    Raises
    ------
    ConfigError
        ``run.dir`` cannot be created or written to.
    ArtifactError
        Another command uses it.
    StorageError
        A remote one cannot be reached or written to.
    UserError
        The command is refused; the error is its own.
    """
    if (
        is_remote(config.run.dir) and not locks
    ):  # its run.log would replace that of a running command
        with temporary() as name:
            yield RunFolder(
                Path(name),
                Progress(stream if stream is not None else sys.stdout, Path(name) / "run.log"),
            )
        return
    if is_remote(config.run.dir):
        with _open_remote(config, verb, stream) as folder:
            yield folder
        return
    root = Path(config.run.dir)
    created = [path for path in (root, *root.parents) if not path.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"run.dir: cannot create the folder {root} ({error.strerror}); choose another --run.dir"
        ) from None
    with _locked(root, verb) if locks else nullcontext():
        folder = RunFolder(
            root, Progress(stream if stream is not None else sys.stdout, root / "run.log")
        )
        folder.record(config, verb)
        try:
            yield folder
        except UserError:
            if created:
                # without the lock, another command may work in the folder; then it stays
                with suppress(UserError), nullcontext() if locks else _locked(root, verb):
                    _remove_refused(folder, verb, created)
            raise


def _remove_refused(folder: RunFolder, verb: str, created: Sequence[Path]) -> None:
    """Remove the folder of a command that failed, and those above it, if it has made nothing in
    them.

    Parameters
    ----------
    folder : RunFolder
        The folder.
    verb : str
        The command.
    created : Sequence of Path
        The folders that the command created, the innermost first.
    """
    if _is_refused(folder, verb):
        shutil.rmtree(folder.root, ignore_errors=True)
        for path in created[1:]:
            with suppress(OSError):  # another command has put something into it
                path.rmdir()


def _is_refused(folder: RunFolder, verb: str) -> bool:
    """Whether a command that failed has left nothing but its own records in its new folder.

    A stage that other stages build on keeps its folder as soon as it has said anything. A line of
    another command in the history also keeps it: a server does not lock the folder that it uses.
    """
    said = () if verb in _CONFIGURING else ("run.log",)
    files = (path for path in folder.root.rglob("*") if not path.is_dir())
    names = {path.relative_to(folder.root).as_posix() for path in files}
    history = folder.root / _HISTORY
    others = history.read_bytes().count(b"\n") > 1 if history.is_file() else False
    return names <= {".lock", *_RECORDS, *said} and not others


@contextmanager
def _open_remote(config: Config, verb: str, stream: TextIO | None) -> Iterator[RunFolder]:
    """A temporary folder that mirrors the remote one."""
    from recsys.storage.filesystems import filesystem_of
    from recsys.storage.locks import holding
    from recsys.storage.mirror import Mirror

    uri = config.run.dir
    # a mirror deletes what is missing here, and a bucket may hold other data
    if "/" not in filesystem_of(uri)[1]:
        raise ConfigError(
            f"run.dir: {uri} is a bucket; choose a folder in it, such as {within(uri, 'run')}"
        )
    free = "wait until it ends, or choose another folder with --run.dir"
    lock = within(uri, ".lock")
    with (
        holding(lock, f"`recsys {verb}`", free),
        temporary() as name,
    ):
        root = Path(name)
        mirror = Mirror(root, uri)
        # large artefacts are fetched when a stage needs them
        mirror.fetch_small(leave=(".lock", "dataset.lock", "recommendations.parquet"))
        is_new = not any(root.iterdir())
        folder = RunFolder(
            root, Progress(stream if stream is not None else sys.stdout, root / "run.log"), mirror
        )
        try:
            folder.record(config, verb)
            yield folder
        except BaseException as error:
            with suppress(Exception):  # do not hide the first error
                if is_new and isinstance(error, UserError) and _is_refused(folder, verb):
                    for record in (*_RECORDS, "run.log"):
                        mirror.remove(root / record)
                else:
                    # what a failed command has finished is kept, so that --resume can continue
                    mirror.publish_changed()
            # the temporary folder is gone when a person reads the message
            if isinstance(error, UserError) and name in str(error):
                raise type(error)(str(error).replace(name, without_query(uri))) from error
            raise
        mirror.publish_changed()


@contextmanager
def _locked(root: Path, verb: str) -> Iterator[None]:
    """Hold the lock of the folder; the system releases it when the process ends."""
    try:
        file = (root / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"run.dir: cannot write in {root} ({error.strerror}); choose another --run.dir"
        ) from None
    with file:
        try:
            # not by the existence of a file, which a killed command would leave behind
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise ArtifactError(
                f"{root} is in use by {holder}; wait until it ends, or choose another folder with"
                " --run.dir"
            ) from None
        # only after the lock: until then the file names the other command
        file.truncate(0)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        file.write(
            f"`recsys {verb}`, process {os.getpid()} on {socket.gethostname()}, since {since}"
        )
        file.flush()
        from recsys.bundle.checksums import recover
        from recsys.storage.beside import remove_abandoned

        for place in (root, root / ANSWERS, root / PROOFS):
            remove_abandoned(place)
        for name in ("model", "final", "bundle"):
            recover(root / name)
            remove_abandoned(root / name)
        yield


def write_atomically(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it.

    Raises
    ------
    StorageError
        The disk is full.
    """
    from recsys.storage.beside import atomic_write
    from recsys.storage.filesystems import storage_errors

    with atomic_write(path) as aside, storage_errors(str(path), "write to"):
        aside.write_text(text, encoding="utf-8")


def _shown_changes(changed: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """A line for each changed key, and one for a whole section ``model`` that is new."""
    of_model = {key: pair for key, pair in changed.items() if key.startswith("model.")}
    if any(before is not None for before, _ in of_model.values()):
        of_model = {}
    shown = {
        key: f"{key}: {before!r} → {after!r}"
        for key, (before, after) in changed.items()
        if key not in of_model
    }
    if of_model:
        shown["model"] = f"model: not given → given, {len(of_model)} keys"
    return [shown[key] for key in sorted(shown)]
