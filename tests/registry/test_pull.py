"""`recsys pull MODEL DIR` gives a folder that answers without a registry; also with real MLflow
servers.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.cli import main
from recsys.config import Config, build_config
from recsys.errors import ArtifactError, ConfigError
from recsys.registry.copy_records import Copy, of_models
from recsys.registry.followed_model import FollowedModel
from recsys.registry.mlflow_client import client, tracking_uri
from recsys.registry.pull import pull_model
from recsys.registry.register import register
from recsys.registry.resolve import resolve
from recsys.registry.tracking import Tracker
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_requests
from tests.handmade import small_model, small_world
from tests.postgres import Postgres

Captured = pytest.CaptureFixture[str]
ASKED = [{"user_id": "u0", "k": 3}, {"history": ["i1"], "k": 3}]


def make_config(folder: Path, uri: str = "") -> Config:
    tree: dict[str, Any] = {
        "run": {"dir": str(folder / "runs/one")},
        "registry": {"name": "pocket"},
    }
    tree["model"] = {"granularities": {"social": {"enabled": True}}}
    return build_config(tree | {"tracking": {"uri": uri}})


def registered(folder: Path, uri: str = "") -> str:
    """A small model as challenger and champion; the tracking URI."""
    config = make_config(folder, uri)
    dataset = small_world(folder / "dataset")
    extra = {"metrics": {"recall@20": 0.5, "ndcg@20": 0.25}, "main_metric": "ndcg@20"}
    write_bundle(
        folder / "bundle", small_model(dataset), dataset, extra, card="# Model card: pocket\n"
    )
    with Tracker(config) as tracker:
        model = register(
            tracker,
            folder / "bundle",
            config.registry,
            {"model": {"ndcg@20": 0.25}},
            resumes=config.run.resume,
            replaces=config.update.replace,
        )
        tracker.client.set_registered_model_alias("pocket", "champion", str(model.version))
    return tracking_uri(config.tracking, config.run.dir)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("store")
    return folder, registered(folder)


def answers(target: Path) -> list[list[str]]:
    return [
        answer.item_ids
        for answer in Recommender(read_bundle(target)).recommend(parse_requests(ASKED))
    ]


def test_pull_needs_no_configuration(
    store: tuple[Path, str], tmp_path: Path, capsys: Captured
) -> None:
    folder, uri = store
    target = tmp_path / "deployed"
    assert main(["pull", "models:/pocket@champion", str(target), "--tracking.uri", uri]) == 0
    shown = capsys.readouterr().out
    for words in (
        "pocket version 1",
        "challenger, champion",
        "ndcg@20 0.2500, recall@20 0.5000",
        "MODEL_CARD.md",
    ):
        assert words in shown, words
    assert shown.splitlines()[-1] == f"serve       mlflow models serve -m {target}"
    names = {path.name for path in target.iterdir()}
    assert {"MLmodel", "requirements.txt", "code", "artifacts", "pulled.json"} <= names
    origin = json.loads((target / "pulled.json").read_text())
    assert origin["aliases"] == ["challenger", "champion"] and origin["version"] == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["deployed"], "nothing is left aside"
    assert answers(resolve(str(target), "")) == answers(folder / "bundle")
    assert main(["pull", "models:/pocket/1", str(target), f"--tracking.uri={uri}"]) == 0, (
        "a pulled model is replaced"
    )


def test_pull_with_configuration_gives_the_same_model(
    store: tuple[Path, str], tmp_path: Path, capsys: Captured
) -> None:
    folder, uri = store
    path = tmp_path / "c.yaml"
    tree = make_config(folder, uri).model_dump(mode="json") | {
        "pull": {"dir": str(tmp_path / "there")}
    }
    path.write_text(yaml.safe_dump(tree))
    assert main(["pull", "--config", str(path), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"writes  {tmp_path}/there/" in shown and "models:/pocket@champion" in shown
    assert not (tmp_path / "there").exists()
    assert main(["pull", "--config", str(path)]) == 0 and (tmp_path / "there/MLmodel").is_file()
    assert not (tmp_path / "runs").exists(), "it works in no run folder"


FRESH = """
import json, sys
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
import recsys
assert sys.argv[1] in recsys.__file__, recsys.__file__
rows = model.predict([{"user_id": "u0", "k": 3}, {"history": ["i1"], "k": 3}]).to_dict("records")
print(json.dumps([row["item_ids"] for row in rows]))
"""


def test_pulled_folder_answers_without_registry_and_sources(
    store: tuple[Path, str], tmp_path: Path
) -> None:
    folder, uri = store
    target = tmp_path / "deployed"
    pull_model("models:/pocket@champion", target, uri)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}  # no server listens there
    done = subprocess.run(
        [sys.executable, "-P", "-c", FRESH, str(target)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == answers(folder / "bundle")


def test_invalid_pulls_are_refused(
    store: tuple[Path, str], tmp_path: Path, capsys: Captured
) -> None:
    _, uri = store
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("years of work")
    given = ["--tracking.uri", uri]
    for words, message in (
        (
            ["models:/pocket@champion", str(tmp_path / "thesis"), *given],
            "is not a bundle, so it is not overwritten",
        ),
        (
            ["models:/pocket@nobody", str(tmp_path / "x"), *given],
            "not registered; registered models: models:/pocket@ch",
        ),
        (["models:/pocket@champion", *given], "got 1 words, expected two: MODEL and DIR"),
        (["some/folder", str(tmp_path / "x"), *given], "expected models:/NAME@ALIAS"),
        (["models:/pocket@champion", "s3://bucket/x", *given], "must be a local folder"),
        ([*given], "pull.dir is empty; give a folder"),
    ):
        assert main(["pull", *words]) == 2
        assert message in capsys.readouterr().err
    assert (tmp_path / "thesis/chapter.txt").read_text() == "years of work" and not (
        tmp_path / "x"
    ).exists()


def test_registry_that_does_not_answer_is_no_missing_model(
    store: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient, MlflowException

    def fails(*_: Any) -> None:
        raise MlflowException("API request to http://127.0.0.1:9 failed")

    _, uri = store
    monkeypatch.setattr(MlflowClient, "get_model_version", fails)
    with pytest.raises(ConfigError, match=r"tracking\.uri .* cannot be used: API request"):
        resolve("models:/pocket@champion", uri)


def test_pull_is_recorded_before_files_are_copied(
    store: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pull that is killed leaves files of users, which `recsys forget` must find."""
    _, uri = store
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.artifacts.download_artifacts", lambda **_: sys.exit("killed"))
        with pytest.raises(SystemExit):
            pull_model("models:/pocket@champion", tmp_path / "killed", uri)
    assert Copy.here("model", tmp_path / "killed") in [one for _, one in of_models(uri, ["pocket"])]
    (tmp_path / "own").mkdir()
    (tmp_path / "own/file").touch()
    with pytest.raises(ArtifactError, match="is not a bundle"):
        pull_model("models:/pocket@champion", tmp_path / "own", uri)
    assert Copy.here("model", tmp_path / "own") not in [
        one for _, one in of_models(uri, ["pocket"])
    ]


def test_damaged_model_in_the_store_is_not_pulled(tmp_path: Path) -> None:
    """Covers files that serving never reads, too."""
    uri = registered(tmp_path)
    target = resolve("models:/pocket@champion", uri)
    # as in earlier releases: only the bundle's own checksums
    client(uri).delete_model_version_tag("pocket", "1", "files.sha256")
    (target / "MODEL_CARD.md").write_text("# Model card: another one\n")
    with pytest.raises(ArtifactError, match=r"MODEL_CARD\.md"):
        pull_model("models:/pocket@champion", tmp_path / "deployed", uri)
    assert not (tmp_path / "deployed").exists()


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete bundle of another model with valid checksums."""
    folder = tmp_path_factory.mktemp("another")
    dataset = small_world(folder / "dataset")
    write_bundle(
        folder / "bundle",
        small_model(dataset, fusion="weighted"),
        dataset,
        {"metrics": {}},
        card="# Another",
    )
    return folder / "bundle"


def appended(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def swapped(model: Path, other: Path) -> None:
    shutil.rmtree(model / "artifacts/bundle")
    shutil.copytree(other, model / "artifacts/bundle")


TAMPERED: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "another model's bundle": (swapped, "its weights are not those that were registered"),
    "the loader": (
        lambda model, _: appended(model / "pyfunc_model.py", "\nevil = 1\n"),
        "changed: pyfunc_model.py",
    ),
    "the code": (
        lambda model, _: appended(model / "code/recsys/__init__.py", "\n"),
        "changed: code/recsys/__init__.py",
    ),
    "what is loaded": (
        lambda model, _: appended(model / "MLmodel", "evil: 1\n"),
        "changed: MLmodel",
    ),
    "the requirements": (
        lambda model, _: appended(model / "requirements.txt", "evil\n"),
        "changed: requirements.txt",
    ),
    "a file more": (
        lambda model, _: (model / "code/evil.py").write_text(""),
        "added: code/evil.py",
    ),
    "a file less": (
        lambda model, _: (model / "python_env.yaml").unlink(),
        "missing: python_env.yaml",
    ),
    "a link": (
        lambda model, _: (model / "code/evil.py").symlink_to("/etc/hostname"),
        "code/evil.py",
    ),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_tampered_model_is_refused_before_its_code_runs(
    store: tuple[Path, str], another: Path, tmp_path: Path, what: str
) -> None:
    folder, uri = store
    change, said = TAMPERED[what]
    model = resolve("models:/pocket@champion", uri).parent.parent
    shutil.copytree(model, tmp_path / "whole")
    try:
        change(model, another)
        for load in (
            lambda: pull_model("models:/pocket@champion", tmp_path / "deployed", uri),
            lambda: resolve("models:/pocket/1", uri),
            lambda: FollowedModel("models:/pocket@champion", uri).load("models:/pocket/1"),
        ):
            with pytest.raises(
                ArtifactError, match="is not what was registered|not a regular file|cannot be read"
            ) as error:
                load()
            assert said in str(error.value)
    finally:
        shutil.rmtree(model)
        shutil.move(tmp_path / "whole", model)
    assert not (tmp_path / "deployed").exists()


@pytest.mark.slow
def test_version_of_earlier_release_is_pulled_with_a_warning(
    tmp_path: Path, capsys: Captured
) -> None:
    uri = registered(tmp_path)
    client(uri).delete_model_version_tag("pocket", "1", "files.sha256")
    assert (
        main(["pull", "models:/pocket/1", str(tmp_path / "deployed"), "--tracking.uri", uri]) == 0
    )
    assert (
        "note        models:/pocket/1 was registered without files.sha256"
        in capsys.readouterr().out
    )
    client(uri).set_model_version_tag("pocket", "1", "weights.sha256", "0" * 64)
    with pytest.raises(ArtifactError, match="its weights are not those that were registered"):
        pull_model("models:/pocket/1", tmp_path / "deployed", uri)


def test_compiled_python_files_are_ignored_and_not_pulled(
    store: tuple[Path, str], tmp_path: Path
) -> None:
    _, uri = store
    model = resolve("models:/pocket@champion", uri).parent.parent
    (model / "code/recsys/__pycache__").mkdir(exist_ok=True)
    (model / "code/recsys/__pycache__/x.cpython-311.pyc").write_bytes(b"evil")
    assert pull_model("models:/pocket/1", tmp_path / "deployed", uri).note == ""
    assert not [*(tmp_path / "deployed").rglob("__pycache__")]


def test_mlflow_refuses_an_exchanged_bundle_in_a_pulled_folder(
    store: tuple[Path, str], another: Path, tmp_path: Path
) -> None:
    _, uri = store
    pull_model("models:/pocket/1", tmp_path / "deployed", uri)
    swapped(tmp_path / "deployed", another)
    import mlflow

    with pytest.raises(
        ArtifactError, match=r"bundle\.json is not the one that was registered with this model"
    ):
        mlflow.pyfunc.load_model(str(tmp_path / "deployed"))


def test_missing_artefacts_raise_one_message(store: tuple[Path, str], tmp_path: Path) -> None:
    folder, uri = store
    artefacts = folder / "runs/mlartifacts"
    artefacts.rename(tmp_path / "moved")
    try:
        for load in (
            lambda: pull_model("models:/pocket/1", tmp_path / "x", uri),
            lambda: resolve("models:/pocket/1", uri),
        ):
            with pytest.raises(
                ArtifactError, match="its files cannot be read.*moved, move it back"
            ):
                load()
    finally:
        (tmp_path / "moved").rename(artefacts)


# ------------------------------------------------------------------------------------- real servers


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def ended(process: subprocess.Popen[bytes]) -> None:
    """Stop a process and its children, which share a process group."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(100)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def serving(folder: Path, backend: str) -> Iterator[str]:
    """An MLflow server on loopback HTTP that also serves artefacts."""
    port = free_port()
    words = [
        "server",
        "--backend-store-uri",
        backend,
        "--artifacts-destination",
        str(folder / "artefacts"),
    ]
    words += ["--serve-artifacts", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            until = time.monotonic() + 500
            while True:
                try:
                    with urllib.request.urlopen(
                        f"http://127.0.0.1:{port}/health", timeout=20
                    ) as response:
                        assert response.status == 200
                    break
                except OSError:
                    assert process.poll() is None and time.monotonic() < until, (
                        folder / "server.log"
                    ).read_text()
                    time.sleep(0.3)
            yield f"http://127.0.0.1:{port}"
        finally:
            ended(process)


def goes_through(folder: Path, uri: str) -> None:
    """Registers, tags, promotes, pulls and answers, all through the server only."""
    assert registered(folder, uri) == uri
    known = client(uri)
    version = known.get_model_version("pocket", "1")
    assert version.tags["metric.ndcg_at_20"] == "0.25" and sorted(version.aliases) == [
        "challenger",
        "champion",
    ]
    run = known.get_run(version.run_id)
    assert run.info.status == "FINISHED" and run.info.artifact_uri.startswith("mlflow-artifacts:")
    found = pull_model("models:/pocket@champion", folder / "deployed", uri)
    assert answers(found.bundle) == answers(folder / "bundle")
    assert read_bundle(resolve("models:/pocket/1", uri)).info == read_bundle(folder / "bundle").info

    (folder / "tmp").mkdir()
    code = (
        "import sys; from recsys.registry.resolve import resolve;"
        " print(resolve('models:/pocket/1', sys.argv[1]))"
    )
    environment = os.environ | {
        "TMPDIR": str(folder / "tmp"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, uri],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"{folder}/tmp/") and not any((folder / "tmp").iterdir()), (
        "gone with the process"
    )


@pytest.mark.slow
def test_model_lifecycle_through_a_real_mlflow_server(tmp_path: Path) -> None:
    for uri in serving(tmp_path, f"sqlite:///{tmp_path}/mlflow.db"):
        goes_through(tmp_path, uri)


@pytest.mark.slow
def test_model_lifecycle_through_a_server_on_postgresql(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="pg-") as place, Postgres(Path(place)) as postgres:
        for uri in serving(tmp_path, postgres.uri):
            goes_through(tmp_path, uri)
        assert postgres.select("select name, version from model_versions") == [("pocket", 1)]
