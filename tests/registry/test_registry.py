"""Tracking records a run; a registered model loads and answers in a fresh process without our
sources.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest

from pipelines.plumbing.progress import Progress
from pipelines.plumbing.run_folder import RunFolder
from pipelines.plumbing.run_tracking import log_evaluation
from pipelines.register import registered_already
from recsys.config import Config, build_config, load_config
from recsys.data.dataset import PreparedDataset
from recsys.errors import ArtifactError, ConfigError, NotRegistered
from recsys.registry.experiments import local_path
from recsys.registry.logged_model import REQUIREMENTS, input_example
from recsys.registry.mlflow_client import active_uris, client, tracking_uri
from recsys.registry.model_page import describe_model
from recsys.registry.provenance import lineage
from recsys.registry.register import RegisteredModel, _version_of_interrupted_run, register
from recsys.registry.resolve import resolve
from recsys.registry.run_tags import working_commit
from recsys.registry.tracking import Tracker, run_of_folder
from recsys.registry.version_tags import _finding_tags
from recsys.registry.versions import Store, delete_whole
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_requests
from tests.handmade import small_model, small_world

METRICS = {
    "model": {"ndcg@20": 0.25, "recall@20": 0.5},
    "baselines": {"popularity": {"ndcg@20": 0.1}},
}


def make_config(folder: Path, **sections: Any) -> Config:
    tree: dict[str, Any] = {"run": {"dir": str(folder / "runs/one"), "name": "one"}}
    tree["model"] = {"granularities": {"social": {"enabled": True}}}
    return build_config(tree | sections)


class Registered:
    """One tracked run with a registered model, shared by the tests."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, make_config(folder, registry={"name": "pocket"})
        self.dataset: PreparedDataset = small_world(folder / "dataset")
        self.bundle = folder / "bundle"
        write_bundle(self.bundle, small_model(self.dataset), self.dataset, {"metrics": METRICS})
        (folder / "report.html").write_text("<html>fine</html>")
        with Tracker(self.config) as tracker:
            for epoch, loss in enumerate([3.0, 2.0, float("nan")]):
                tracker.log_metrics(
                    {"loss": loss, "valid": {"ndcg@20": 0.1 * epoch}, "note": "text"}, step=epoch
                )
            tracker.log_dataset(self.dataset.manifest, self.dataset.root)
            tracker.log_file(folder / "report.html")
            self.model: RegisteredModel = register(
                tracker,
                self.bundle,
                self.config.registry,
                METRICS,
                resumes=self.config.run.resume,
                replaces=self.config.update.replace,
            )
        self.uri = tracking_uri(self.config.tracking, self.config.run.dir)
        self.run_id = tracker.run_id


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registered]:
    before = Path.cwd()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    os.chdir(elsewhere)
    try:
        yield Registered(tmp_path_factory.mktemp("registry"))
        assert list(elsewhere.iterdir()) == [], (
            "a stray MLflow store was made in the working directory"
        )
    finally:
        os.chdir(before)


def test_run_has_parameters_metrics_dataset_and_files(registered: Registered) -> None:
    found = client(registered.uri)
    run = found.get_run(registered.run_id)
    assert registered.uri == f"sqlite:///{registered.folder}/runs/mlflow.db"
    assert run.info.status == "FINISHED" and run.info.run_name == "one"
    assert (
        run.data.params["train.metric"] == "ndcg@20" and "model.fusion.kind" not in run.data.params
    ), "what was set"
    assert run.data.tags["mlflow.source.type"] == "LOCAL" and run.data.tags["mlflow.source.name"]
    history = found.get_metric_history(registered.run_id, "loss")
    # NaN is left out
    assert [(metric.step, metric.value) for metric in history] == [(0, 3.0), (1, 2.0)]
    assert run.data.metrics["valid.ndcg_at_20"] == pytest.approx(0.2)
    dataset = run.inputs.dataset_inputs[0].dataset
    assert dataset.name == "handmade" and registered.dataset.manifest.content_hash.startswith(
        dataset.digest
    )
    assert run.data.tags["dataset.content_hash"] == registered.dataset.manifest.content_hash
    assert run.info.artifact_uri.startswith((registered.folder / "runs/mlartifacts").as_uri())
    names = {file.path for file in found.list_artifacts(registered.run_id)}
    assert {"config.yaml", "report.html"} <= names
    local = registered.folder / "downloaded"
    local.mkdir()
    assert (
        load_config(found.download_artifacts(registered.run_id, "config.yaml", str(local)))
        == registered.config
    )


def test_version_has_alias_tags_and_description(registered: Registered) -> None:
    found = client(registered.uri).get_model_version_by_alias("pocket", "challenger")
    assert registered.model == RegisteredModel(
        "pocket",
        1,
        "challenger",
        "models:/pocket@challenger",
        "models:/pocket/1",
        "no baseline was measured",
    )
    assert str(found.version) == "1" and found.run_id == registered.run_id
    assert (
        found.tags["metric.ndcg_at_20"] == "0.25"
        and "metric.baselines.popularity.ndcg_at_20" not in found.tags
    )
    assert found.tags["dataset.content_hash"] == registered.dataset.manifest.content_hash
    assert "6 users, 12 items" in found.description and "ndcg@20 0.2500" in found.description


def test_resolve_finds_the_bundle(registered: Registered) -> None:
    for uri in ("models:/pocket@challenger", "models:/pocket/1", str(registered.bundle)):
        assert read_bundle(resolve(uri, registered.uri)).info == read_bundle(registered.bundle).info


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/pocket@champion", "not registered; registered models: models:/pocket@challenger"),
        (
            "models:/rocket@challenger",
            "not registered; registered models: models:/pocket@challenger",
        ),
        ("models:/pocket/7", "not registered"),
        ("models:/pocket", "expected models:/NAME@ALIAS"),
        ("/no/such/folder", "has no model bundle"),
    ],
)
def test_unknown_model_lists_registered_models(
    registered: Registered, uri: str, message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        resolve(uri, registered.uri)


def test_number_too_large_for_mlflow_is_not_registered(registered: Registered) -> None:
    with pytest.raises(NotRegistered, match=r"pocket/9{20} is not registered; registered models"):
        resolve(f"models:/pocket/{'9' * 20}", registered.uri)


def test_resolving_creates_no_store(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="the MLflow store"):
        resolve("models:/pocket@challenger", f"sqlite:///{tmp_path}/mlflow.db")
    assert list(tmp_path.iterdir()) == []


FRESH = """
import json, sys
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/pocket@challenger")
import recsys
assert "mlartifacts" in recsys.__file__, recsys.__file__
rows = [{"user_id": "u0", "k": 3}, {"history": ["i1", "x"]}, {"user_id": "nobody", "k": 2}]
rows[2]["exclude_seen"] = False
rows += [{"user_id": "u0", "history": ["i9"], "k": 3}]
rows += [{"user_id": "newcomer", "friends": ["u0", "zoe"], "k": 3}]
found = {"rows": model.predict(rows).to_dict("records")}
frame = pd.DataFrame(rows[:2])
found["frame"] = model.predict(frame, params={"k": 2}).to_dict("records")
objects = [{"history": [{"item_id": "i1", "event_type": "buy"}], "k": 1}]
found["objects"] = model.predict(objects).to_dict("records")
found["errors"] = []
ids = pd.DataFrame({"user_id": [7, 8]})
holes = pd.DataFrame({"user_id": [7, None], "history": [None, ["i1"]]})
typo = {"user_id": "u0", "exclude_sen": False}
bad_ones = [[{"user_id": "u0", "k": 0}], [{"user": "u0"}], [{"user_id": 5}]]
bad_ones += [[{"history": "i1"}], [{"k": 3}], [3]]
for bad in (*bad_ones, [typo], pd.DataFrame([typo]), ids, holes):
    try:
        model.predict(bad)
    except Exception as error:
        found["errors"].append(f"{type(error).__name__}: {error}")
heavy = ("ray", "transformers", "torch_geometric")
found["heavy"] = [name for name in heavy if name in sys.modules]
found["request"] = list(model.metadata.metadata["request"]["properties"])
found["signature"] = model.metadata.signature.to_dict()
found["example"] = model.metadata.saved_input_example_info is not None
print(json.dumps(found, allow_nan=False))
"""


def test_registered_model_answers_without_our_sources(
    registered: Registered, tmp_path: Path
) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", FRESH, registered.uri],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    recommender = Recommender(read_bundle(registered.bundle))
    asked = [
        {"user_id": "u0", "k": 3},
        {"history": ["i1", "x"]},
        {"user_id": "nobody", "k": 2, "exclude_seen": False},
    ]
    asked += [
        {"user_id": "u0", "history": ["i9"], "k": 3},
        {"user_id": "newcomer", "friends": ["u0", "zoe"], "k": 3},
    ]
    for row, answer in zip(
        found["rows"], recommender.recommend(parse_requests(asked)), strict=True
    ):
        assert row["item_ids"] == answer.item_ids and row["user_id"] == answer.user_id
        assert row["scores"] == pytest.approx(answer.scores, rel=1e-4, abs=1e-5)
        assert row["source"] == answer.source and row["unknown_items"] == answer.unknown_items
        assert row["unknown_friends"] == answer.unknown_friends
        for place, score in enumerate(row["scores"]):
            assert (
                row["source"] == "popularity"
                or sum(share[place] for share in row["shares"].values()) == score
            )
    newest, newcomer = found["rows"][3:]
    assert newest["scores"] != found["rows"][0]["scores"], (
        "the newest event counts without training"
    )
    assert newcomer["source"] == "model" and newcomer["unknown_friends"] == ["zoe"]
    assert newcomer["shares"]["social"] == newcomer["scores"]
    # the parameter applies where the cell is empty
    assert [len(row["item_ids"]) for row in found["frame"]] == [3, 2]
    assert found["objects"][0]["source"] == "model" and len(found["objects"][0]["item_ids"]) == 1
    expected = [
        "k: got 0",
        "user: unknown field",
        "user_id: got 5",
        "history: got 'i1'",
        "needs at least one of user_id",
        "request 0",
    ]
    expected += ["exclude_sen: unknown field", "exclude_sen: unknown field"]
    expected += [
        "user_id: the column holds numbers (int64), expected strings",
        'astype("Int64").astype("string")',
    ]
    assert len(found["errors"]) == len(expected)
    assert all(text in error for text, error in zip(expected, found["errors"], strict=True)), found[
        "errors"
    ]
    assert found["heavy"] == []
    asked = [
        "user_id",
        "history",
        "friends",
        "attributes",
        "k",
        "exclude_seen",
        "context",
        "horizon",
        "at",
    ]
    asked += ["candidates", "exclude", "filters", "boost", "diversify", "offset", "explain"]
    asked += ["per_user_limit"]
    assert sorted(found["request"]) == sorted(asked) and found["example"]
    assert found["signature"]["inputs"] is None and "item_ids" in found["signature"]["outputs"]


def test_failed_run_is_marked_and_can_continue(registered: Registered) -> None:
    config = make_config(
        registered.folder,
        tracking={"uri": registered.uri},
        run={"dir": str(registered.folder / "b")},
    )
    with pytest.raises(ZeroDivisionError), Tracker(config, "doomed") as tracker:
        _ = 1 / 0
    found = client(registered.uri)
    run = found.get_run(tracker.run_id)
    assert run.info.status == "FAILED" and run.info.run_name == "doomed"
    assert run.data.tags["error"] == "ZeroDivisionError: division by zero"
    assert run_of_folder(config.tracking, config.run.dir) == tracker.run_id
    with Tracker(config, run_id=run_of_folder(config.tracking, config.run.dir)) as again:
        again.log_metrics({"late": 1})
    run = found.get_run(again.run_id)
    assert (
        again.run_id == tracker.run_id
        and run.info.status == "FINISHED"
        and run.data.metrics == {"late": 1.0}
    )


def test_version_created_before_an_interruption_is_reused(registered: Registered) -> None:
    sections = {"tracking": {"uri": registered.uri}, "registry": {"name": "pocket"}}
    config = make_config(
        registered.folder, **sections, run={"dir": str(registered.folder / "e"), "resume": True}
    )
    with Tracker(config, run_id=registered.run_id, apart=True) as tracker:
        assert (
            register(
                tracker,
                registered.bundle,
                config.registry,
                METRICS,
                resumes=config.run.resume,
                replaces=config.update.replace,
            )
            == registered.model
        )
    found = client(registered.uri)
    (version,) = found.search_model_versions("name = 'pocket'")
    for other in ({"weights.sha256": "0" * 64}, {"run_id": "0" * 32}, {"metric.ndcg_at_20": "0.5"}):
        assert _version_of_interrupted_run(found, "pocket", {**version.tags, **other}) == 0
    assert (
        _version_of_interrupted_run(found, "pocket", version.tags) == 1
        and _version_of_interrupted_run(found, "wallet", version.tags) == 0
    )


def test_registration_counts_as_made_only_with_the_same_settings_and_while_it_exists(
    registered: Registered,
) -> None:
    folder, digest = RunFolder(registered.folder / "runs/one", Progress(None)), "sha of metrics"
    folder.bundle.mkdir(parents=True)
    made = {**asdict(registered.model), "tracking": registered.uri, "metrics_sha256": digest}

    def known(digest: str = digest, **sections: Any) -> bool:
        sections = {"registry": {"name": "pocket"}} | sections
        config = make_config(registered.folder, **sections)
        return registered_already(config, folder, digest) is not None

    folder.write_json(folder.registered, made)
    assert known() and not known("of other metrics")
    assert not known(train={"final": True})
    assert not known(registry={"name": "other"})
    assert not known(registry={"name": "pocket", "alias": "canary"})
    assert not known(tracking={"uri": f"sqlite:///{registered.folder}/another.db"})
    assert not known(tracking={"enabled": False})
    # below the minimum: the version did not get the alias that it was registered for
    folder.write_json(folder.registered, made | {"alias": "", "wanted_alias": "challenger"})
    assert known() and not known(registry={"name": "pocket", "alias": "canary"})
    folder.write_json(folder.registered, made | {"version": 99})
    assert not known(), "the version was deleted"
    shutil.rmtree(folder.bundle)
    folder.forget(folder.registered)


def test_model_logged_before_an_interruption_is_deleted(
    registered: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command is killed between logging the model and creating the version."""
    sections = {"tracking": {"uri": registered.uri}, "registry": {"name": "purse"}}
    config = make_config(registered.folder, **sections, run={"dir": str(registered.folder / "k")})

    def again(resumes: bool) -> RegisteredModel:
        return register(
            tracker, registered.bundle, config.registry, METRICS, resumes=resumes, replaces=False
        )

    with Tracker(config) as tracker:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(
                "recsys.registry.register.logged_files", Mock(side_effect=KeyboardInterrupt)
            )
            again(resumes=False)
        (lost,) = of_run(tracker)
        files = local_path(lost.artifact_location)
        assert files is not None and list(files.rglob("bundle.json"))
        assert again(resumes=True).version == 1
        (kept,) = of_run(tracker)
        (version,) = tracker.client.search_model_versions("name = 'purse'")
    assert version.source == kept.model_uri != lost.model_uri
    assert not list(files.rglob("bundle.json"))


def test_deletion_of_a_model_that_was_interrupted_is_completed(
    registered: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`recsys forget` was killed while it deleted the files of a model, before their record."""
    sections = {"tracking": {"uri": registered.uri}, "registry": {"name": "sack"}}
    config = make_config(registered.folder, **sections, run={"dir": str(registered.folder / "s")})
    with Tracker(config) as tracker:
        register(
            tracker, registered.bundle, config.registry, METRICS, resumes=False, replaces=False
        )
        (model,) = of_run(tracker)
        store = Store(registered.uri)
        assert model.model_id not in store.models_without_files()
        files = local_path(model.artifact_location)
        assert files is not None
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("shutil.rmtree", Mock(side_effect=KeyboardInterrupt))
            delete_whole(files)
        assert model.model_id in store.models_without_files()
        assert list(files.parent.rglob("bundle.json")), "the files are there under another name"
        store.finish_deletions()
        assert not list(files.parent.rglob("bundle.json"))
        store.delete_record(model.model_id)
        assert not of_run(tracker) and model.model_id not in store.models_without_files()


def of_run(tracker: Tracker) -> list[Any]:
    """The logged models of the tracker's run."""
    return list(
        tracker.client.search_logged_models(
            [tracker.experiment_id], filter_string=f"source_run_id = '{tracker.run_id}'"
        )
    )


def test_deleted_run_is_replaced_by_a_new_one(registered: Registered) -> None:
    config = make_config(
        registered.folder,
        tracking={"uri": registered.uri},
        run={"dir": str(registered.folder / "c")},
    )
    with Tracker(config) as first:
        pass
    client(registered.uri).delete_run(first.run_id)
    for gone in (first.run_id, "0" * 32):
        with Tracker(config, run_id=gone) as again:
            pass
        assert (
            again.run_id != gone and run_of_folder(config.tracking, config.run.dir) == again.run_id
        )


def test_deleted_experiment_has_its_own_message(registered: Registered) -> None:
    tracking = {"uri": registered.uri, "experiment": "short-lived"}
    config = make_config(
        registered.folder, tracking=tracking, run={"dir": str(registered.folder / "d")}
    )
    with Tracker(config) as tracker:
        pass
    client(registered.uri).delete_experiment(tracker.experiment_id)
    with (
        pytest.raises(ConfigError, match=r"^tracking\.experiment: 'short-lived' was deleted"),
        Tracker(config),
    ):
        raise AssertionError("must not be entered")


def test_uri_without_credentials_names_the_fix(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"--tracking\.uri, or as an environment variable \$VARIABLE"
    ):
        config = make_config(tmp_path, tracking={"uri": "postgresql://***@host/db"})
        tracking_uri(config.tracking, config.run.dir)


def test_children_name_their_parent(registered: Registered) -> None:
    config = make_config(registered.folder, tracking={"uri": registered.uri})
    with Tracker(config, "trial-1", parent_id=registered.run_id) as child:
        child.set_tags({"trial": 1})
    tags = client(registered.uri).get_run(child.run_id).data.tags
    assert tags["mlflow.parentRunId"] == registered.run_id and tags["trial"] == "1"
    # a child run does not replace the run of the folder
    assert run_of_folder(registered.config.tracking, registered.config.run.dir) == registered.run_id


def test_leftover_experiment_id_is_ignored(
    registered: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    config = make_config(
        registered.folder, tracking={"uri": registered.uri, "experiment": "another one"}
    )
    with Tracker(config, "x", parent_id=registered.run_id) as tracker:
        assert client(registered.uri).get_experiment(tracker.experiment_id).name == "another one"
    assert "MLFLOW_EXPERIMENT_ID" not in os.environ and "MLFLOW_TRACKING_URI" not in os.environ


def test_disabled_tracker_does_nothing(registered: Registered, tmp_path: Path) -> None:
    config = make_config(tmp_path, tracking={"enabled": False})
    with Tracker(config) as tracker:
        tracker.log_params({"a": 1})
        tracker.log_metrics({"a": 1})
        tracker.log_dataset(registered.dataset.manifest, "x")
        tracker.log_file("missing")
        tracker.set_tags({"a": 1})
        with pytest.raises(ConfigError, match=r"tracking\.enabled true"):
            register(
                tracker,
                registered.bundle,
                config.registry,
                METRICS,
                resumes=config.run.resume,
                replaces=config.update.replace,
            )
    assert list(tmp_path.iterdir()) == [] and tracker.run_id == ""


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", "ftp://host/x"])
def test_unsupported_store_uris_are_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.uri: got .*expected sqlite"):
        Tracker(make_config(tmp_path, tracking={"uri": uri}))


@pytest.mark.parametrize("uri", ["http://", "https://:443", "http://host:port", "http://[::1"])
def test_server_uris_without_a_host_or_with_a_wrong_port_are_refused(
    tmp_path: Path, uri: str
) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.uri: got .*expected https?://HOST:PORT"):
        Tracker(make_config(tmp_path, tracking={"uri": uri}))


def test_unreachable_store_raises_one_message(tmp_path: Path) -> None:
    (tmp_path / "broken.db").write_text("this is no database, it is a poem")
    with (
        pytest.raises(
            ConfigError,
            match=r"broken\.db is not a SQLite database.*give the path of MLflow.s store",
        ),
        Tracker(make_config(tmp_path, tracking={"uri": f"sqlite:///{tmp_path}/broken.db"})),
    ):
        raise AssertionError("must not be entered")


def test_verbs_that_read_a_store_wait_seconds_for_a_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow import MlflowException

    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    patience = []

    def fails(*_: Any, **__: Any) -> None:
        patience.append(os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES"))
        raise MlflowException("API request to http://127.0.0.1:9/x failed")

    silent = Mock(get_model_version=fails, search_registered_models=fails)
    for module in ("resolve", "versions"):
        monkeypatch.setattr(f"recsys.registry.{module}.client", lambda *_, **__: silent)
    message = r"tracking\.uri http://127\.0\.0\.1:9 cannot be used: API request .*start the server"
    with pytest.raises(ConfigError, match=message):
        resolve("models:/pocket/1", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=message):
        Store("http://127.0.0.1:9")
    assert patience == ["2", "2"] and "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_missing_driver_of_a_database_raises_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(ConfigError, match=r"tracking\.uri postgresql.*cannot be used.*psycopg2"):
        resolve("models:/pocket@champion", "postgresql+psycopg2://127.0.0.1:9/db")


def test_remote_run_folders_need_a_tracking_uri(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"set tracking\.uri"):
        config = make_config(tmp_path, run={"dir": "s3://bucket/run"})
        tracking_uri(config.tracking, config.run.dir)


def test_relative_sqlite_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = make_config(tmp_path, tracking={"uri": "sqlite:///deep/mlflow.db"})
    assert tracking_uri(config.tracking, config.run.dir) == f"sqlite:///{tmp_path}/deep/mlflow.db"


def test_invalid_aliases_are_refused(registered: Registered) -> None:
    config = make_config(
        registered.folder, tracking={"uri": registered.uri}, registry={"alias": "v1"}
    )
    with (
        Tracker(config, parent_id=registered.run_id) as tracker,
        pytest.raises(ConfigError, match=r"registry\.alias"),
    ):
        register(
            tracker,
            registered.bundle,
            config.registry,
            METRICS,
            resumes=config.run.resume,
            replaces=config.update.replace,
        )


def test_empty_cells_of_a_frame_count_as_missing() -> None:
    from recsys.registry.pyfunc_model import _rows

    frame = pd.DataFrame([{"user_id": "u0", "k": 3}, {"history": ["i1"]}])
    assert _rows(frame, {"k": 7, "exclude_seen": False}) == [
        {"user_id": "u0", "k": 3, "exclude_seen": False},
        {"history": ["i1"], "k": 7, "exclude_seen": False},
    ]


@pytest.mark.slow
def test_system_metrics_are_logged_when_enabled(tmp_path: Path) -> None:
    config = Config()
    config.run.dir, config.tracking.system_metrics = str(tmp_path / "run"), True
    with Tracker(config) as tracker:
        assert tracker._monitor is not None
        tracker._monitor.collect_metrics()
        tracker._monitor.publish_metrics(tracker._monitor.aggregate_metrics())
    found = client(tracker.uri).get_run(tracker.run_id).data.metrics
    assert any(name.startswith("system/") for name in found)
    config.tracking.system_metrics = False
    with Tracker(config) as without:
        assert without._monitor is None


EVALUATED: dict[str, Any] = {
    "metric": "ndcg@5",
    "model": {
        "ndcg@5": 0.3,
        "recall@5": 0.4,
        "mrr@5": 0.2,
        "hit@5": 0.5,
        "coverage@5": 0.9,
        "map@5": 0.1,
        "gini@10": 0.7,
    },
    "baselines": {"ease": {"ndcg@5": 0.25, "recall@5": 0.3}, "popularity": {"ndcg@5": 0.1}},
    "confidence": {
        "model": {"ndcg@5": [0.2, 0.4]},
        "baselines": {"ease": {"ndcg@5": [0.2, 0.3]}, "popularity": {"ndcg@5": [0.0, 0.2]}},
    },
    "comparison": {
        "metric": "ndcg@5",
        "best_baseline": "ease",
        "best_on_test": "ease",
        "against": {"ease": {"difference": 0.05, "low": -0.01, "high": 0.1, "p": 0.1}},
    },
    "segments": {
        "history": {"1–4 $x": {"queries": 7, "model": {"ndcg@5": 0.2}, "interval": [0.1, 0.3]}}
    },
    "granularities": {"social": {"weight": 1.0}},
    "trust": {"items": {"popularity": {"disparity": {"model": 0.125}}}},
    "timing": {"prepare_s": 1.0, "train_s": 2.0, "evaluate_s": 4.0, "baseline_ease_s": 8.0},
    "data": {"name": "hand <b>made</b>", "queries": 7},
}


def test_second_evaluation_replaces_the_tables(registered: Registered) -> None:
    config = make_config(
        registered.folder,
        tracking={"uri": registered.uri},
        run={"dir": str(registered.folder / "f")},
    )
    with Tracker(config) as tracker:
        log_evaluation(tracker, EVALUATED)
        log_evaluation(tracker, EVALUATED)
    found = client(registered.uri)
    path = Path(found.download_artifacts(tracker.run_id, "baselines.json", str(registered.folder)))
    table = json.loads(path.read_text())
    assert [row[table["columns"].index("recommender")] for row in table["data"]] == [
        "model",
        "ease",
        "popularity",
    ]
    assert table["data"][0][table["columns"].index("ndcg@5")] == 0.3
    assert [file.path for file in found.list_artifacts(tracker.run_id, "figures")] == [
        "figures/recommenders.png"
    ]


def test_description_written_by_a_user_is_kept(registered: Registered) -> None:
    registry = client(registered.uri)
    assert "| challenger |" in registry.get_registered_model("pocket").description
    registry.update_registered_model("pocket", description="ours")
    describe_model(registry, registered.config.registry)
    assert registry.get_registered_model("pocket").description == "ours"


def test_input_example_has_no_user_of_the_data(registered: Registered) -> None:
    folder = resolve("models:/pocket/1", registered.uri).parent.parent
    texts = [path.read_text() for path in folder.glob("*input_example*.json")]
    users = read_bundle(registered.bundle).user_ids
    assert texts and "invented-user" in texts[0] and users
    assert not [user for user in users for text in texts if json.dumps(user) in text]


def test_invented_user_is_renamed_when_the_id_exists(registered: Registered) -> None:
    bundle = replace(
        read_bundle(registered.bundle), user_ids=["invented-user", "invented-friend-1", "u0"]
    )
    example = input_example(bundle)
    named = {*example["user_id"], *(friend for friends in example["friends"] for friend in friends)}
    assert named and not named & set(bundle.user_ids)


@pytest.mark.parametrize(
    ("single", "expected"), [("item_cf", "trained, item_cf"), (None, "trained, behaviour, item_cf")]
)
def test_members_tag_lists_trained_granularities_only_without_stacking(
    single: str | None, expected: str
) -> None:
    kinds = {"trained": "together", "behaviour": "trained", "item_cf": "fitted", "als": "fitted"}
    each = {name: {"kind": kind, "kept": name != "als", "why": ""} for name, kind in kinds.items()}
    assert _finding_tags({"members": {"single": single, "each": each}})["members"] == expected


def test_run_version_and_lineage_have_the_same_commit(
    registered: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = registered.folder / "project"
    project.mkdir()
    git = ["git", "-C", str(project), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    monkeypatch.chdir(project)
    first = working_commit(project)[0]
    config = make_config(
        registered.folder,
        tracking={"uri": registered.uri},
        run={"dir": str(registered.folder / "h")},
    )
    with Tracker(config) as tracker:
        assert tracker.client.get_run(tracker.run_id).data.tags["mlflow.source.git.commit"] == first
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "second"], check=True)
    with Tracker(config, run_id=tracker.run_id) as again:  # registered after a later commit
        assert lineage(config, "d", again)["git_commit"] == first != working_commit(project)[0]


def test_model_without_alias_is_listed_by_number(registered: Registered) -> None:
    registry = client(registered.uri)
    source = registry.get_model_version("pocket", "1").source
    registry.create_registered_model("bare")
    with active_uris(registered.uri):
        registry.create_model_version("bare", source=source)
    with pytest.raises(ArtifactError, match=r"models:/bare/1 \(no alias\)"):
        resolve("models:/bare@challenger", registered.uri)
    registry.delete_registered_model("bare")


_SERVED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
import recsys.registry.pyfunc_model
import recsys.granularities.social.model, recsys.granularities.collaborative.model
"""


@pytest.mark.slow
def test_served_code_needs_only_what_the_model_requires() -> None:
    """A registered model runs in an environment with its requirements alone, and MLflow."""
    required = _closure([*REQUIREMENTS, "mlflow"])
    others = {_name(line) for line in requires("multigrain") or ()} - {"multigrain"} - required
    blocked = [
        package
        for package, names in packages_distributions().items()
        if others & {_name(name) for name in names}
    ]
    assert {"ray", "polars", "transformers", "torch_geometric"} <= set(blocked)
    done = subprocess.run(
        [sys.executable, "-c", _SERVED, *blocked],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr


def _name(requirement: str) -> str:
    """The name of a distribution, as it is compared."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()


def _closure(names: list[str]) -> set[str]:
    """These distributions and all that they require."""
    found, left = set[str](), list(names)
    while left:
        name = _name(left.pop())
        if name in found:
            continue
        found.add(name)
        with suppress(PackageNotFoundError):
            left += [line for line in requires(name) or () if "extra ==" not in line]
    return found
