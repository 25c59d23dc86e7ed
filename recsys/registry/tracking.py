"""MLflow tracking of a pipeline run: parameters, metrics, dataset digest and artefacts of one
MLflow run.

Why our own tracker: the run is opened on the driver with explicit ids and an absolute URI, so a
worker that changes its directory, or an environment variable that a library left, cannot redirect
anything. A disabled tracker is the same object and does nothing, so stages need no second code
path.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from recsys import __version__
from recsys.config import Config, TrackingConfig, dump_config, redact
from recsys.data.manifest import Manifest
from recsys.errors import ConfigError, StorageError
from recsys.registry.experiments import experiment_id, local_path
from recsys.registry.logged_values import mlflow_name, numbers, set_parameters
from recsys.registry.mlflow_client import (
    client,
    first_contact,
    has_store,
    sqlite_path,
    tracking_uri,
)
from recsys.registry.run_tags import (
    CHANGED_TAG,
    COMMIT_TAG,
    PARENT_TAG,
    PROCESS_TAG,
    origin_tags,
    working_commit,
)
from recsys.registry.store import remove_unused
from recsys.registry.store_state import State, store_error
from recsys.storage.beside import atomic_write
from recsys.storage.filesystems import check_writable, require_s3_client
from recsys.storage.locks import this_process
from recsys.storage.uris import is_remote

RUN_FILE: Final = (
    "tracking.json"  # in the run folder: its MLflow run, so that separately started stages share it
)
_MAX_PARAMS: Final = 100  # per call, MLflow's limit
_MAX_METRICS: Final = 1000
_MAX_VALUE: Final = 6000
_MAX_DIGEST: Final = 36
_ERROR_TAG: Final = "error"  # why the run has failed


class Tracker:
    """The MLflow run of a pipeline run; does nothing when ``tracking.enabled`` is false.

    A context manager: entering opens a new run, or continues ``run_id``; leaving ends the run as
    FINISHED, as FAILED after an exception, or as KILLED after an interrupt.

    Parameters
    ----------
    config : Config
        Configuration of the run.
    run_name : str
        Name of the MLflow run; empty: ``run.name``, or the name of the run folder.
    run_id : str
        MLflow run to continue; empty: a new run.
    parent_id : str
        MLflow run that is the parent of this one; empty: none.
    folder : Path | None
        Local run folder; None: ``run.dir``, unless it is remote.
    apart : bool
        Whether this run is separate from the run that the stages of the run folder share.

    Raises
    ------
    ConfigError
        ``tracking.uri`` is invalid or cannot be opened.
    """

    def __init__(
        self,
        config: Config,
        run_name: str = "",
        run_id: str = "",
        parent_id: str = "",
        folder: Path | None = None,
        apart: bool = False,
    ) -> None:
        self._apart = apart or bool(parent_id)
        self.config, self.enabled = config, config.tracking.enabled
        self.uri = tracking_uri(config.tracking, config.run.dir) if self.enabled else ""
        self.run_id, self.experiment_id = run_id, ""
        self._name = run_name or config.run.shown_name
        self._parent_id = parent_id
        # commit of the working directory at the start of the run, where known
        self.commit: tuple[str, bool] | None = None
        # a remote run folder has a local one only where the caller made it
        self._folder = (
            folder if folder is not None or is_remote(config.run.dir) else Path(config.run.dir)
        )
        self._client: Any = None
        self._continues = False  # whether the MLflow run is one of an earlier command
        self._made_store = False  # whether there was no store before
        self._monitor: Any = None

    def __enter__(self) -> Tracker:
        if not self.enabled:
            return self
        self._made_store = not has_store(self.uri)
        with first_contact(
            self.uri, "start the server, fix the URI, or set tracking.enabled false"
        ):
            self._client = client(self.uri, writes=True)
            self._open()
            self._check_store()
        # first: a command that continues a killed one finds the run
        self._remember()
        self._log_config()
        if self.config.tracking.system_metrics and not self._apart:
            self._monitor = _system_monitor(self.run_id, self.uri)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end_monitor()
        if self._client is None:
            return
        status = "FINISHED"
        if error is not None:
            # a run that a person stopped is no failed run
            status = "KILLED" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "FAILED"
            with suppress(
                Exception
            ):  # the error of the run matters more than a failure to record it
                self.set_tags({_ERROR_TAG: redact(f"{type(error).__name__}: {error}")})
        try:
            self._client.set_terminated(self.run_id, status)
        except Exception:
            if error is None:
                raise
        self._client = None

    def _end_monitor(self) -> None:
        if self._monitor is not None:
            with suppress(Exception):  # system metrics are not worth a failed run
                self._monitor.finish()
            self._monitor = None

    def discard(self) -> None:
        """Delete the MLflow run that this tracker began, and a store that it made: wrong input was
        refused before any work.

        A continued run stays.
        """
        if self._client is None or self._continues:
            return
        self._end_monitor()  # it writes to the run
        with suppress(Exception):  # the refusal matters more
            self._client.set_terminated(self.run_id, "FAILED")
            files = local_path(str(self._client.get_run(self.run_id).info.artifact_uri))
            self._client.delete_run(self.run_id)
            if files is not None:
                _remove_with_empty_folders(files)
            path = sqlite_path(self.uri)
            if self._made_store and path is not None:
                remove_unused(path)
                self._client = None  # nothing is left to end

    def adopt(self, run_id: str) -> None:
        """Make an earlier MLflow run a child of this one, as a search of the training that it was
        for.
        """
        if self._client is not None and run_id:
            self._client.set_tag(run_id, PARENT_TAG, self.run_id)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters by name; long values are cut to MLflow's limit, existing parameters are
        kept.
        """
        if self._client is None:
            return
        from mlflow.entities import Param

        # MLflow refuses another value for a parameter, which a resumed run may have
        known = self._client.get_run(self.run_id).data.params
        texts = {
            mlflow_name(key): redact(_text(value))[:_MAX_VALUE] for key, value in params.items()
        }
        entries = [Param(key, value) for key, value in texts.items() if key not in known]
        for start in range(0, len(entries), _MAX_PARAMS):
            self._client.log_batch(self.run_id, params=entries[start : start + _MAX_PARAMS])

    def log_metrics(
        self, metrics: Mapping[str, Any], step: int = 0, time_ms: int | None = None
    ) -> None:
        """Log numbers, nested ones by dotted path; ``ndcg@20`` becomes ``ndcg_at_20``, a valid name
        in MLflow.

        Texts and numbers that are not finite are left out. The same numbers sent twice with the
        same time are stored once.

        Parameters
        ----------
        metrics : Mapping[str, Any]
            Nested mapping of numbers.
        step : int
            Step of the training.
        time_ms : int | None
            Time in milliseconds since the epoch; None: now.
        """
        if self._client is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000) if time_ms is None else time_ms
        found = [
            Metric(mlflow_name(key), value, now, step) for key, value in numbers(metrics).items()
        ]
        for start in range(0, len(found), _MAX_METRICS):
            self._client.log_batch(self.run_id, metrics=found[start : start + _MAX_METRICS])

    def log_dataset(self, manifest: Manifest, root: str) -> None:
        """Log the dataset as an input of the run: name, content hash, location and counts."""
        if self._client is None:
            return
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=manifest.name[:500] or "dataset",
            digest=manifest.content_hash[:_MAX_DIGEST],
            source_type="prepared",
            source=json.dumps({"uri": redact(root)}),
            profile=json.dumps(manifest.counts),
        )
        self._client.log_inputs(
            self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
        )
        self.set_tags(
            {"dataset.content_hash": manifest.content_hash, "dataset.name": manifest.name}
        )

    def log_file(self, path: str | Path, folder: str = "") -> None:
        """Log a file as an artefact."""
        if self._client is not None:
            self._client.log_artifact(self.run_id, str(path), folder or None)

    def log_table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Log rows as one table artefact, which MLflow shows and compares between runs; missing
        keys are empty.

        An existing table of that name is replaced; MLflow itself would append to it.
        """
        if self._client is None or not rows:
            return
        columns = {
            key: [row.get(key) for row in rows]
            for key in dict.fromkeys(key for row in rows for key in row)
        }
        # a resumed stage would otherwise add its rows a second time
        if name in self._client.get_run(self.run_id).data.tags.get("mlflow.loggedArtifacts", ""):
            import pandas as pd

            self._client.log_text(
                self.run_id, pd.DataFrame(columns).to_json(orient="split", index=False), name
            )
        else:
            self._client.log_table(self.run_id, columns, name)

    def log_figure(self, figure: Any, name: str) -> None:
        """Log a matplotlib figure as an artefact."""
        if self._client is not None:
            self._client.log_figure(self.run_id, figure, name)

    def describe(self, text: str) -> None:
        """Set the description of the run, in Markdown."""
        self.set_tags({"mlflow.note.content": text})

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags of the run."""
        if self._client is None:
            return
        for key, value in tags.items():
            self._client.set_tag(self.run_id, key, redact(_text(value))[:_MAX_VALUE])

    def tag(self, key: str) -> str:
        """A tag of the run; empty where it is missing."""
        if self._client is None:
            return ""
        return str(self._client.get_run(self.run_id).data.tags.get(key, ""))

    def has_metric(self, key: str) -> bool:
        """Whether a metric was logged to the run."""
        if self._client is None:
            return False
        return mlflow_name(key) in self._client.get_run(self.run_id).data.metrics

    @property
    def client(self) -> Any:
        """The ``MlflowClient`` of an open, enabled tracker."""
        assert self._client is not None, "the tracker is not open"
        return self._client

    def _open(self) -> None:
        # from an earlier run; it would override the name
        os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
        run = self._earlier_run() if self.run_id else None
        self._continues = run is not None
        if run is not None:
            self._client.update_run(self.run_id, status="RUNNING")
            self._client.set_tag(self.run_id, PROCESS_TAG, this_process())
            if _ERROR_TAG in run.data.tags:  # of the command that failed
                self._client.delete_tag(self.run_id, _ERROR_TAG)
        else:
            self.experiment_id = experiment_id(
                self._client, sqlite_path(self.uri), self.config.tracking
            )
            tags = {"multigrain.version": __version__, **origin_tags(*working_commit(Path.cwd()))}
            tags[PROCESS_TAG] = this_process()
            if self._parent_id:
                tags[PARENT_TAG] = self._parent_id
            run = self._client.create_run(
                self.experiment_id, tags=tags, run_name=self._name or None
            )
        self.run_id, self.experiment_id = run.info.run_id, run.info.experiment_id
        if COMMIT_TAG in run.data.tags:
            self.commit = run.data.tags[COMMIT_TAG], run.data.tags.get(CHANGED_TAG) == "true"
        self._check_artifacts(str(run.info.artifact_uri))

    def _check_store(self) -> None:
        """Check that no refused command has removed its new store before this run began.

        Raises
        ------
        ArtifactError
            It has.
        """  # noqa: DOC501
        path = sqlite_path(self.uri)
        if path is not None and not path.exists():
            raise store_error(path, State("absent"))

    def _check_artifacts(self, uri: str) -> None:
        """Check now what would otherwise fail after the training, where MLflow waits minutes per
        artefact.

        Raises
        ------
        StorageError
            The location is not writable, or boto3 is missing.
        """
        if uri.startswith(("s3://", "gs://")):
            try:
                if uri.startswith("s3://"):
                    require_s3_client(uri)
                check_writable(uri)
            except StorageError:
                self._client.set_terminated(self.run_id, "FAILED")
                raise

    def _earlier_run(self) -> Any:
        """The run of ``run_id``; None where it has been deleted."""
        from mlflow import MlflowException

        try:
            run = self._client.get_run(self.run_id)
        except MlflowException as error:
            # a server that is down must not look like a run that was deleted
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        # MLflow refuses to write to a deleted run
        return run if run.info.lifecycle_stage == "active" else None

    def _log_config(self) -> None:
        self.log_params(set_parameters(self.config))
        self._client.log_text(self.run_id, redact(dump_config(self.config)), "config.yaml")

    def _remember(self) -> None:
        if self._folder is None or self._apart:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        content = {
            "uri": redact(self.uri),
            "experiment_id": self.experiment_id,
            "run_id": self.run_id,
        }
        with atomic_write(self._folder / RUN_FILE) as aside:
            aside.write_text(json.dumps(content, indent=1))


def run_of_folder(tracking: TrackingConfig, run_dir: str, folder: Path | None = None) -> str:
    """The id of the MLflow run that an earlier stage opened for this run folder; empty where there
    is none.

    Parameters
    ----------
    tracking : TrackingConfig
        The section ``tracking``; the run must be in its store.
    run_dir : str
        The configuration's ``run.dir``.
    folder : Path | None
        Local run folder; None: ``run_dir``.

    Returns
    -------
    str
        The id of the run; empty: none.
    """
    try:
        content = json.loads(((folder or Path(run_dir)) / RUN_FILE).read_text())
        # an id of another store would name no run, or a wrong one
        same = content["uri"] == redact(tracking_uri(tracking, run_dir))
        return str(content["run_id"]) if same else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _remove_with_empty_folders(files: Path) -> None:
    """Remove the artefacts of a run, and the folders above them that are empty then."""
    shutil.rmtree(files, ignore_errors=True)
    with suppress(OSError):  # of the run, of the experiment, and ``mlartifacts``
        for folder in list(files.parents)[:3]:
            folder.rmdir()


def _system_monitor(run_id: str, uri: str) -> Any:
    """Start MLflow's monitor of CPU, memory, disk, network and GPU.

    Raises
    ------
    ConfigError
        The package psutil, which it needs, is missing.
    """
    if find_spec("psutil") is None:
        raise ConfigError(
            "tracking.system_metrics: psutil is missing; pip install psutil, or set it false"
        )
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor: Any = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)  # type: ignore[no-untyped-call]
    monitor.start()
    return monitor


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
