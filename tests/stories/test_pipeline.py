"""The whole pipeline on a tiny world through the command line: files of each stage, and each stage
alone."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import mlflow
import pyarrow.parquet as pq
import pytest
import yaml

from pipelines.cli import main
from pipelines.plumbing.opened_dataset import open_dataset
from pipelines.plumbing.opened_model import open_trained
from pipelines.plumbing.progress import Progress
from pipelines.plumbing.run_folder import RunFolder
from pipelines.run import headline_table, verdict
from recsys.config import Config, load_config
from recsys.data.histories import Split
from recsys.errors import ArtifactError
from recsys.evaluation.example_users import example_users
from recsys.evaluation.ranking import rank
from recsys.registry.resolve import resolve
from recsys.training.context import TrainContext
from recsys.training.phases import fit

KS = [5, 10]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Path:
    """A finished `recsys run` of a tiny synthetic world; the folder of its configuration."""
    folder = tmp_path_factory.mktemp("world")
    tree: dict[str, Any] = {
        "run": {"dir": str(folder / "run"), "name": "tiny"},
        "data": {
            "source": {"kind": "synthetic", "num_users": 60, "num_items": 40, "num_partitions": 1},
            "text": {"enabled": False},
            "quarantine": {"max_share": 0.5},
            "num_shards": 1,
        },
        "model": {
            "width": 8,
            "item": {"text": False},
            "granularities": {"evolution": {"enabled": True}, "social": {"enabled": True}},
        },
        "train": {"epochs": 2, "batch_size": 32, "metric": "ndcg@5", "threads": 1, "warmup": 0.0},
        "evaluate": {
            "ks": KS,
            "baselines": ["popularity", "item_knn"],
            "bootstrap": 100,
            "num_examples": 3,
        },
        "recommend": {"k": 4},
        "registry": {"name": "tiny"},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    before = signal.getsignal(signal.SIGINT)
    assert main(["run", "--config", str(folder / "tiny.yaml")]) == 0
    assert signal.getsignal(signal.SIGINT) is before, (
        "Ray Train's own handler would block Ctrl-C after the training"
    )
    return folder


def _open(world: Path) -> tuple[Any, RunFolder]:
    return load_config(world / "tiny.yaml"), RunFolder(world / "run", Progress(None))


def test_run_folder_has_the_files_of_the_contract(world: Path) -> None:
    run = world / "run"
    names = [
        "config.yaml",
        "metrics.json",
        "report.html",
        "checkpoints",
        "model",
        "bundle",
        "dataset",
        "run.log",
    ]
    assert [name for name in names if not (run / name).exists()] == []
    assert load_config(run / "config.yaml") == load_config(world / "tiny.yaml")


def test_metrics_json_has_the_contract_keys(world: Path) -> None:
    metrics = json.loads((world / "run" / "metrics.json").read_text())
    assert metrics.keys() >= {
        "model",
        "baselines",
        "segments",
        "confidence",
        "timing",
        "granularities",
    }
    kinds = [
        "recall",
        "ndcg",
        "precision",
        "mrr",
        "map",
        "hit",
        "coverage",
        "novelty",
        "gini",
        "diversity",
    ]
    assert {f"{kind}@{k}" for kind in kinds for k in KS} <= metrics["model"].keys()
    assert list(metrics["baselines"]) == ["popularity", "item_knn"]
    assert all(metrics["timing"][f"{stage}_s"] > 0 for stage in ("prepare", "train", "evaluate"))
    assert {"weight", "ndcg@5_without"} <= metrics["granularities"]["social"].keys()


def test_report_loads_nothing_from_outside(world: Path) -> None:
    html = (world / "run" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html and 'src="http' not in html and "ndcg@5" in html.lower()


def test_first_model_below_its_baseline_is_registered_and_used_by_its_number(world: Path) -> None:
    registered = json.loads((world / "run" / "registered.json").read_text())
    comparison = json.loads((world / "run" / "metrics.json").read_text())["comparison"]
    best = comparison["best_on_test"]
    assert comparison["against"][best]["high"] < 0, (
        "two epochs of a tiny world are below the best baseline"
    )
    uri = f"models:/tiny/{registered['version']}"
    assert registered["alias"] == "" and registered["uri"] == registered["pinned_uri"] == uri
    client = mlflow.MlflowClient(registered["tracking"])
    assert client.get_registered_model("tiny").aliases == {}
    assert (
        f"below the baseline {best}"
        in client.get_model_version("tiny", str(registered["version"])).tags["minimum.why"]
    )
    log = (world / "run" / "run.log").read_text()
    (line,) = [line for line in log.splitlines() if "without an alias:" in line]
    assert f"below the baseline {best}" in line and f"use it by its number, {uri}" in line
    assert registered["by_hand"] in line and f"without an alias (see above): {uri}" in log
    assert (resolve(uri, registered["tracking"]) / "bundle.json").is_file()


def test_one_mlflow_run_holds_parameters_metrics_and_artifacts(world: Path) -> None:
    tracking = json.loads((world / "run" / "tracking.json").read_text())
    client = mlflow.MlflowClient(tracking["uri"])
    run = client.get_run(tracking["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.epochs"] == "2"
    assert len(client.get_metric_history(tracking["run_id"], "train.loss")) == 2
    names = {item.path.split("/")[-1] for item in client.list_artifacts(tracking["run_id"])}
    assert {
        "metrics.json",
        "report.html",
        "config.yaml",
        "baselines.json",
        "segments.json",
        "figures",
    } <= names


def test_mlflow_shows_twelve_figures_first_and_the_rest_under_prefixes(world: Path) -> None:
    tracking = json.loads((world / "run" / "tracking.json").read_text())
    metrics = json.loads((world / "run" / "metrics.json").read_text())
    client = mlflow.MlflowClient(tracking["uri"])
    run = client.get_run(tracking["run_id"])
    headlines = {
        name: value
        for name, value in run.data.metrics.items()
        if "." not in name and "/" not in name
    }
    assert len(headlines) == 12
    best = metrics["comparison"]["best_on_test"]
    assert headlines["ndcg_at_5"] == metrics["model"]["ndcg@5"]
    assert headlines["lift"] == pytest.approx(
        headlines["ndcg_at_5"] - metrics["baselines"][best]["ndcg@5"]
    )
    assert headlines["lift_low"] <= headlines["lift"] <= headlines["lift_high"]
    assert run.data.metrics["test.recall_at_5"] == metrics["model"]["recall@5"]
    assert metrics["comparison"]["metric"] in run.data.tags["mlflow.note.content"]
    assert run.data.tags["mlflow.user"] and len(run.data.params) < 60
    tables = {}
    for name in ("baselines", "segments"):
        path = client.download_artifacts(tracking["run_id"], f"{name}.json")
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        tables[name] = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    assert [row["recommender"] for row in tables["baselines"]] == ["model", *metrics["baselines"]]
    assert tables["baselines"][0]["ndcg@5"] == pytest.approx(metrics["model"]["ndcg@5"])
    assert len(tables["segments"]) > 1 and {"group", "segment", "queries"} <= set(
        tables["segments"][0]
    )


def test_shares_of_the_examples_add_up_to_the_scores(world: Path) -> None:
    config, folder = _open(world)
    dataset = open_dataset(config.data, config.dataset_dir, config.seed)
    model = open_trained(config.model, folder, dataset).frozen
    queries = dataset.histories().queries(Split.TEST)
    ranking = rank(model, queries, 5, True, 64)
    examples = example_users(model, dataset, ranking, 3, seed=1)
    assert len(examples) == 3 and len({example["user"] for example in examples}) == 3
    for example in examples:
        assert example["history"]
        for entry in example["recommendations"]:
            assert list(entry["shares"]) == ["evolution", "social"]
            assert sum(entry["shares"].values()) == pytest.approx(entry["score"], abs=1e-4)
        scores = [entry["score"] for entry in example["recommendations"]]
        assert scores == sorted(scores, reverse=True)
    assert examples == example_users(model, dataset, ranking, 3, seed=1), (
        "the seed determines the chosen users"
    )


def test_prepare_again_does_nothing_and_starts_no_ray(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_ray(*_: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("pipelines.prepare.ray_session", no_ray)
    manifest = world / "run" / "dataset" / "manifest.json"
    before = manifest.stat().st_mtime_ns
    assert main(["prepare", "--config", str(world / "tiny.yaml")]) == 0
    assert manifest.stat().st_mtime_ns == before
    assert "up to date" in capsys.readouterr().out


def test_separate_evaluate_gives_the_same_numbers(world: Path) -> None:
    before = json.loads((world / "run" / "metrics.json").read_text())
    assert main(["evaluate", "--config", str(world / "tiny.yaml")]) == 0
    after = json.loads((world / "run" / "metrics.json").read_text())
    assert (
        after["model"] == pytest.approx(before["model"])
        and after["confidence"] == before["confidence"]
    )


def test_recommend_writes_a_list_for_every_user(world: Path) -> None:
    config, _ = _open(world)
    assert main(["recommend", "--config", str(world / "tiny.yaml")]) == 0
    path = world / "run" / "recommendations.parquet"
    table = pq.read_table(path)
    users = table.column("user_id").to_pylist()
    assert sorted(set(users)) == sorted(
        open_dataset(config.data, config.dataset_dir, config.seed).user_ids.to_pylist()
    )


@pytest.mark.slow
def test_answers_to_requests_leave_the_lists_of_all_users_as_they_are(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["recommend", "--config", str(world / "tiny.yaml")]
    assert main(words) == 0
    all_lists = (world / "run" / "recommendations.parquet").read_bytes()
    requests = tmp_path / "new users.jsonl"
    requests.write_text('{"user_id": "nobody", "k": 3}\n')
    words += ["--requests", str(requests)]
    capfd.readouterr()
    assert main(words) == 0
    own = world / "run" / "answers" / "new users.parquet"
    assert f"in {own}" in (printed := capfd.readouterr()).out
    [line] = printed.err.splitlines()  # Ray prints no line of its own
    assert "recommend  starting" in line
    assert pq.read_table(own).column("user_id").to_pylist() == ["nobody"] * 3
    assert main([*words, "--out", str(tmp_path / "made" / "lists.parquet")]) == 0
    assert pq.read_table(tmp_path / "made" / "lists.parquet").equals(pq.read_table(own))
    assert main([*words, "--out", str(tmp_path)]) == 2
    assert (world / "run" / "recommendations.parquet").read_bytes() == all_lists


def test_model_of_other_data_is_refused(world: Path) -> None:
    config, folder = _open(world)
    dataset = open_dataset(config.data, config.dataset_dir, config.seed)
    dataset.manifest.content_hash = "f" * 64
    with pytest.raises(ArtifactError, match="was trained on dataset .*run `recsys train` again"):
        open_trained(config.model, folder, dataset)


def _refused(world: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    verb, *options = words
    assert main([verb, "--config", str(world / "tiny.yaml"), *options]) == 2
    return capsys.readouterr().err


def test_model_of_another_model_section_is_refused(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = _refused(
        world, capsys, "evaluate", "--model.max_history", "7", "--model.fusion.kind", "gated"
    )
    assert "model.max_history was 50, is now 7; run `recsys train` again" in message


def test_dataset_of_other_data_settings_is_refused(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("train", "evaluate", "register"):
        message = _refused(world, capsys, verb, "--data.source.num_users", "61")
        assert (
            "was prepared with other data settings" in message and "run `recsys prepare`" in message
        )
    config = load_config(
        world / "tiny.yaml", [("data.quarantine.max_share", "0.4"), ("data.text.cache_dir", "x")]
    )
    # neither changes the content of the dataset
    open_dataset(config.data, config.dataset_dir, config.seed)


def test_metrics_of_another_model_are_not_registered(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = world / "run" / "metrics.json"
    before = path.read_text()
    metrics = json.loads(before)
    assert len(metrics["model_sha256"]) == 64
    path.write_text(json.dumps({**metrics, "model_sha256": "0" * 64}))
    try:
        assert "metrics.json belongs to another model" in _refused(world, capsys, "register")
    finally:
        path.write_text(before)


def test_new_model_replaces_everything_derived_from_the_old_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, Progress(None))
    for path in (
        folder.metrics,
        folder.report,
        folder.registered,
        folder.recommendations,
        tmp_path / "run.log",
    ):
        path.write_text("x")
    for path in (folder.model, folder.bundle):
        path.mkdir()
        (path / "model.safetensors").write_text("x")
    folder.forget_model()
    assert [path.name for path in tmp_path.iterdir()] == ["run.log"]


def test_closing_summary_names_the_best_first_with_its_interval() -> None:
    metrics = {
        "metric": "ndcg@5",
        "model": {"ndcg@5": 0.3, "recall@5": 0.5},
        "baselines": {"ease": {"ndcg@5": 0.35, "recall@5": 0.4}},
        "comparison": {
            "best_baseline": "ease",
            "against": {"ease": {"difference": -0.05, "low": -0.08, "high": -0.02}},
        },
    }
    rows = [line.split() for line in headline_table(metrics).splitlines()]
    assert rows == [
        ["ndcg@5", "recall@5"],
        ["ease", "0.3500", "0.4000"],
        ["multigrain", "0.3000", "0.5000"],
    ]
    assert verdict(metrics).startswith("worse than ease, the best baseline: ndcg@5 -0.0500")


def _retrained(world: Path) -> dict[str, Any]:
    """Run `recsys evaluate` with every variant trained again; return their part of the metrics, and
    the report."""
    arguments = ["--evaluate.ablation", "retrain"]
    assert main(["evaluate", "--config", str(world / "tiny.yaml"), *arguments]) == 0
    found: dict[str, Any] = json.loads((world / "run" / "metrics.json").read_text())["ablation"][
        "retrained"
    ]
    assert {group: set(entries) for group, entries in found.items()} == {
        "off": {"evolution", "social"},
        "alone": {"evolution", "social"},
        "fusion": {"weighted", "gated"},
    }
    for group in ("off", "alone"):
        for entry in found[group].values():
            assert 0 <= entry["value"] <= 1 and entry["low"] <= entry["difference"] <= entry["high"]
    assert found["off"]["evolution"] == found["alone"]["social"], "the same model"
    html = (world / "run" / "report.html").read_text(encoding="utf-8")
    assert "Left out, trained again" in html and "Other fusions, trained again" in html
    return found


def test_metrics_and_report_contain_retrained_variants(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained by the loop without Ray, each of the four different ones once; a second evaluation
    reuses all of them."""
    from recsys.training import ray_train

    trainings: list[list[str]] = []

    def here(config: Config, dataset: Any, validate: Any, report: Any, *_: Any, **__: Any) -> Any:
        trainings.append(list(config.model.granularities.enabled()))
        return fit(config, dataset, validate, TrainContext())

    monkeypatch.setattr(ray_train, "train_on_ray", here)
    shutil.rmtree(world / "run" / "ablation", ignore_errors=True)
    first = _retrained(world)
    assert sorted(trainings) == [
        ["evolution"],
        ["evolution", "social"],
        ["evolution", "social"],
        ["social"],
    ]
    assert _retrained(world) == first and len(trainings) == 4


@pytest.mark.slow
def test_retrained_ablation_runs_through_ray_train(world: Path) -> None:
    shutil.rmtree(world / "run" / "ablation", ignore_errors=True)
    _retrained(world)
