"""`recsys forget` in copies: answer logs, exports, saved and pulled models, data frames."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from test_forget import _holding, _proofs, _write_world

import recsys
from pipelines.cli import main
from pipelines.following.sides import note_log
from pipelines.forgetting.copies import _without_rows, find_copies
from pipelines.plumbing.progress import Progress
from pipelines.plumbing.run_folder import RunFolder
from recsys.bundle.checksums import entry_of
from recsys.config import ServeConfig, build_config
from recsys.export.forget import Exported
from recsys.privacy.footprints import SearchTargets
from recsys.privacy.rows import RowFinder
from recsys.registry.copy_records import FOLDER, Copy, of_models, of_run, owner_of, remember
from recsys.serving.admission import Limits
from recsys.serving.answer_log import AnswerLog, read_logs, remove_rows
from recsys.serving.bundles import read_bundle
from recsys.serving.service import Incoming, service_of
from tests.training_here import training_here

Captured = pytest.CaptureFixture[str]
GONE = "person-007"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Iterator[Path]:
    """The configuration of a finished run whose version is champion."""
    folder = tmp_path_factory.mktemp("films")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        with training_here():
            path = _write_world(folder)
            tree = yaml.safe_load(path.read_text(encoding="utf-8"))
            tree["model"]["granularities"] = {
                "evolution": {"enabled": True},
                "user_cf": {"enabled": True},
            }
            tree["model"]["fusion"] = {"stack": False}
            path.write_text(yaml.safe_dump(tree), encoding="utf-8")
            assert main(["run", "--config", str(path), "--train.final", "false"]) == 0
            store = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
            store.set_registered_model_alias("films", "champion", "1")
            yield path


def _log(folder: Path, bundle: Path, rows: list[dict[str, Any]]) -> None:
    """Answer like a server that logs to a folder."""
    service = service_of(ServeConfig(log=str(folder)), Limits(1 << 20, 100))
    service.adopt(read_bundle(bundle), {"uri": "models:/films@champion", "version": "1"}, "a")

    async def ask(job: Any) -> Any:
        return service.answer([job])[0]

    call = Incoming("POST", "/recommend", {}, json.dumps(rows).encode())
    assert asyncio.run(service.handle(call, ask, ask)).status == 200


def test_user_is_removed_from_recorded_named_and_local_copies(
    trained: Path, capsys: Captured
) -> None:
    """Answers are logged, the model is exported, pulled and saved; then a user is forgotten in all
    copies.
    """
    root, store = trained.parent, f"sqlite:///{trained.parent / 'mlflow.db'}"
    run, away = root / "run", root / "elsewhere"
    history = pd.read_csv(root / "events.csv").query("user_id == @GONE").dropna().item_id.tolist()
    rows: list[dict[str, Any]] = [
        {"user_id": GONE, "k": 3},
        {"user_id": "person-001", "k": 3},
        {"user_id": "newcomer", "friends": [GONE, "person-002"], "k": 3},
        {"history": [{"item_id": item, "event_type": "interact"} for item in history], "k": 3},
        {"user_id": "person-002", "history": ["film-01"], "k": 3},
    ]
    for place in (away / "log", run / "log", root / "named" / "log"):
        _log(place, run / "bundle", rows)
    message: list[str] = []
    note_log(str(away / "log"), ["models:/films@champion"], store, message.append)
    tracking = ["--tracking.uri", store]
    exported = [
        "export",
        str(run),
        "--to",
        "parquet",
        "--out",
        str(away / "export"),
        "--export.users",
        "true",
    ]
    assert main([*exported, *tracking]) == 0
    assert main(["pull", "models:/films@champion", str(away / "pulled"), *tracking]) == 0
    recsys.load(run).save(away / "saved")
    assert not message and "`recsys forget`" not in capsys.readouterr().out
    assert {copy.kind for _, copy in of_models(store, ["films"])} == {"answers", "model"}
    assert {(copy.kind, Path(copy.place).name) for copy in of_run(run)} == {
        ("export", "export"),
        ("model", "saved"),
    }
    assert (
        len(_holding(away, GONE)) >= 4
        and _holding(root / "named", GONE)
        and _holding(run / "log", GONE)
    )

    assert (
        main(["forget", "--config", str(trained), "--user", GONE, "--also", str(root / "named")])
        == 0
    )
    assert _holding(root, GONE) == ["events.csv", "social.csv"]
    for place in (away / "log", run / "log", root / "named" / "log"):
        logged, num_cut = read_logs([str(place)])
        assert (
            sorted(str(one.user_id) for one in logged) == ["person-001", "person-002"]
            and num_cut == 0
        )
    proof = _proofs(trained)[-1]
    assert proof["result"] == "nothing found"
    assert {str(away / name) for name in ("log", "export", "pulled", "saved")} <= set(
        proof["places"]
    )
    assert str(root / "named") in proof["places"]
    searched = {one["path"] for one in proof["searched"]}
    assert str(away / "export" / "users.parquet") in searched
    assert any(name.startswith("log/answers-") for name in searched)
    assert (
        sum(proof["done"]["copies"]["rows"].values()) == 9 and not proof["done"]["copies"]["left"]
    )

    new = read_bundle(run / "bundle").info
    again = Exported.at(away / "export")
    assert again is not None and again.dataset == new.dataset["content_hash"]
    assert pq.read_table(away / "export" / "users.parquet").num_rows == 59
    assert json.loads((away / "pulled" / "pulled.json").read_text())["version"] == "2"
    assert recsys.load(away / "saved").info.created == new.created
    assert len(recsys.load(away / "saved").recommend("person-001", k=3)) == 3


def test_user_only_in_a_log_is_forgotten_also_at_a_uri(trained: Path) -> None:
    rows = [{"user_id": "stranger-1", "history": ["film-02"]}, {"user_id": "person-001"}]
    _log(trained.parent / "asked", trained.parent / "run" / "bundle", rows)
    command = ["forget", "--config", str(trained), "--user", "stranger-1"]
    assert main(command) == 2, "nothing names the folder"
    assert main([*command, "--also", f"file://{trained.parent / 'asked'}"]) == 0
    assert _holding(trained.parent, "stranger-1") == []
    [path] = (trained.parent / "asked").glob("*.jsonl")
    assert [one.user_id for one in read_logs([str(path)])[0]] == ["person-001"]
    assert f"file://{path}" in {one["path"] for one in _proofs(trained)[-1]["searched"]}


@pytest.mark.slow
def test_copies_of_another_model_are_reported_and_kept_unless_deletion_is_requested(
    trained: Path, capsys: Captured
) -> None:
    """A saved model of another run cannot be rebuilt here; its export loses only rows of its
    table.
    """
    root = trained.parent
    other = recsys.load(root / "run").save(root / "other" / "saved")
    info = json.loads((other / "bundle.json").read_text())
    info["dataset"]["content_hash"] = "another"
    (other / "bundle.json").write_text(json.dumps(info))
    exported = ["export", str(other), "--to", "parquet", "--out", str(root / "other" / "export")]
    assert main([*exported, "--export.users", "true"]) == 0
    graph = json.loads((root / "other" / "export" / "manifest.json").read_text())
    graph["onnx"] = {"holds_of_users": ["user_cf"]}
    shutil.copytree(root / "other" / "export", root / "other" / "graph")
    (root / "other" / "graph" / "manifest.json").write_text(json.dumps(graph))
    for path in (root / "run" / FOLDER).glob("*.json"):
        path.unlink()  # records would make them copies of this run
    command = [
        "forget",
        "--config",
        str(trained),
        "--user",
        "person-011",
        "--also",
        str(root / "other"),
    ]
    assert main(command) == 1
    shown = capsys.readouterr().err
    assert f"{other}: its model cannot be made again here" in shown and "delete_versions" in shown
    assert f"{root / 'other' / 'graph'}: the graph has a row per user" in shown
    export = Exported.at(root / "other" / "export")
    assert (
        export is not None
        and export.num_rows(["person-011"]) == 0
        and export.num_rows(["person-012"]) == 1
    )
    assert (
        export.manifest["files"]["users.parquet"]
        == entry_of(export.folder / "users.parquet").model_dump()
    )
    assert main([*command, "--forget.delete_versions", "true"]) == 0
    assert not other.exists() and not (root / "other" / "graph").exists() and export.folder.exists()


def test_rows_written_while_a_log_is_rewritten_are_kept(tmp_path: Path) -> None:
    """Four replicas append to one file all the time; afterwards it has every row of other users
    exactly once.
    """
    log, stop, number = AnswerLog(str(tmp_path)), threading.Event(), 400

    def write(replica: int) -> None:
        for count in range(number):
            users = ("u1", f"other-{replica}-{count}")
            assert log.write(
                [
                    {"user_id": user, "request": {"user_id": user}, "item_ids": ["i"] * 50}
                    for user in users
                ]
            )
        stop.set()

    log.write([{"user_id": "u1", "request": {}}])
    [path] = tmp_path.glob("*.jsonl")
    path.chmod(0o640)
    writers = [threading.Thread(target=write, args=(replica,)) for replica in range(4)]
    for writer in writers:
        writer.start()
    removed = 0
    while not stop.is_set():
        removed += remove_rows(path, RowFinder(["u1"], SearchTargets()))
    for writer in writers:
        writer.join()
    removed += remove_rows(path, RowFinder(["u1"], SearchTargets()))
    left = [json.loads(line)["user_id"] for line in path.read_text().splitlines()]
    assert removed == 4 * number + 1
    assert sorted(left) == sorted(
        f"other-{replica}-{count}" for replica in range(4) for count in range(number)
    )
    assert [one.name for one in tmp_path.iterdir()] == [
        path.name
    ] and path.stat().st_mode & 0o777 == 0o640


def test_log_row_belongs_to_user_by_id_or_friend_not_by_number() -> None:
    rows = [
        {"user_id": "4", "request": {"user_id": "4"}, "item_ids": ["7"]},
        {"user_id": "9", "request": {"user_id": "9", "friends": ["4"]}, "item_ids": ["7"]},
        {"user_id": "9", "request": {"user_id": "9", "history": ["4"]}, "item_ids": ["4"]},
        {"user_id": None, "request": {"history": ["4"]}, "item_ids": []},
    ]
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    assert RowFinder(["4"], SearchTargets())(lines) == [True, True, False, False]
    assert RowFinder(['ü,"4'], SearchTargets())(
        [json.dumps({"user_id": 'ü,"4'}, ensure_ascii=False).encode()]
    ) == [True]


def test_saved_frames_lose_the_rows_of_the_user(
    tmp_path: Path, ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Python API wrote them, so they are not the user's own source files."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    users = [user for user in range(100, 140) for _ in range(8)]
    events = pd.DataFrame(
        {
            "customer": users,
            "product": [f"film {(user * 7 + n) % 30}" for n, user in enumerate(users)],
        }
    )
    events["ordered_at"] = pd.Timestamp("2026-01-01") + pd.to_timedelta(
        range(len(events)), unit="h"
    )
    towns = pd.DataFrame(
        {"customer": range(100, 140), "town": [f"town {number % 5}" for number in range(40)]}
    )
    given = recsys.Dataset.from_pandas(events, users=towns, folder=tmp_path / "shop")
    assert given.prepared.num_users == 40
    (tmp_path / "shop.yaml").write_text(given.to_yaml(), encoding="utf-8")
    more = ["--run.dir", str(tmp_path / "run"), "--tracking.enabled", "false"]
    assert main(["forget", "--config", str(tmp_path / "shop.yaml"), "--user", "107", *more]) == 0
    left = pq.read_table(tmp_path / "shop" / "tables" / "events.parquet")
    assert left.num_rows == 312 and 107 not in left.column("customer").to_pylist()
    assert pq.read_table(tmp_path / "shop" / "tables" / "users.parquet").num_rows == 39
    [proof] = [
        json.loads(path.read_text())
        for path in (tmp_path / "run" / "forgotten").glob("proof-*.json")
    ]
    assert (
        str(tmp_path / "shop" / "tables") in proof["places"]
        and proof["source_files_with_them"] == []
    )


def test_integer_ids_in_a_column_with_gaps_are_recognised(tmp_path: Path) -> None:
    """Pandas turns integers into floats where a value is missing."""
    ids = pd.Series([107, None, 108, 107.5], dtype="float64")
    pq.write_table(pa.table({"who": pa.array(ids, from_pandas=True)}), tmp_path / "events.parquet")
    assert _without_rows(tmp_path / "events.parquet", {"who": "user_id"}, pa.array(["107"])) == 1
    assert pq.read_table(tmp_path / "events.parquet").column("who").to_pylist() == [
        None,
        108.0,
        107.5,
    ]


def test_what_a_killed_pull_left_is_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", Progress(io.StringIO()))
    (tmp_path / "run/copies").mkdir(parents=True)
    note = json.dumps(asdict(Copy.here("model", tmp_path / "pulled")))
    (tmp_path / "run/copies/one.json").write_text(note)
    (tmp_path / ".pulled.writing-1-0a0b0c0d").mkdir()
    (tmp_path / ".pulled.writing-1-0a0b0c0d/users.parquet").write_text("person-007")
    config = build_config({"run": {"dir": str(tmp_path / "run")}})
    assert find_copies(config, folder, None, tmp_path).locations[1:] == []
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]


def test_copy_is_recorded_with_its_model(tmp_path: Path) -> None:
    (tmp_path / "run" / "bundle").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").touch()
    (tmp_path / "run" / "bundle" / "bundle.json").touch()
    copy = Copy.here("export", tmp_path / "export")
    for asked in (tmp_path / "run", tmp_path / "run" / "bundle"):
        assert remember([copy], asked, "") and of_run(tmp_path / "run") == [copy]
    assert not remember([copy], tmp_path / "nowhere", "")
    (tmp_path / "pulled" / "artifacts" / "bundle").mkdir(parents=True)
    (tmp_path / "pulled" / "pulled.json").write_text(
        '{"name": "films", "version": "3", "tracking": "sqlite:////x.db"}'
    )
    owner = owner_of(str(tmp_path / "pulled" / "artifacts" / "bundle"), "")
    assert owner is not None and (owner.name, owner.tracking) == ("films", "sqlite:////x.db")
    elsewhere = Copy("answers", "/no/such/folder", "another-machine")
    assert elsewhere.is_elsewhere and not copy.is_elsewhere
    (tmp_path / "run" / FOLDER / "odd.json").write_text("{}")
    assert of_run(tmp_path / "run") == [copy], "a note that is none is left alone"
