"""`recsys compare RUN RUN`: two finished runs are compared in pairs; runs that cannot be paired are
refused.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipelines.cli import main
from pipelines.evaluate import evaluate
from pipelines.plumbing.opened_model import ORIGIN
from pipelines.plumbing.run_folder import open_run
from recsys.config import Config, load_config
from recsys.evaluation.bootstrap import compare
from recsys.evaluation.paired_test import paired_metrics
from recsys.evaluation.validation import Validator
from recsys.training.checkpoint import save_trained
from recsys.training.context import TrainContext
from recsys.training.phases import fit
from tests.handmade import leave_last, write_dataset

pytestmark = pytest.mark.usefixtures("one_thread")
Captured = pytest.CaptureFixture[str]
ITEMS = 24


def finished(folder: Path, name: str, data: str = "data", **changes: Any) -> Path:
    """A run folder as `recsys run` writes it, trained in this process."""
    walks = [
        leave_last(*((5 * user + step) % ITEMS for step in range(6 + user % 3)))
        for user in range(72)
    ]
    dataset = write_dataset(folder / data, walks, ITEMS)
    if data != "data":
        manifest = folder / data / "manifest.json"
        manifest.write_text(manifest.read_text().replace("0123456789abcdef", f"{data:0<16}"))
        dataset = type(dataset)(str(folder / data))
    granularity = {"enabled": True, "dropout": 0.0, "input_dropout": 0.0}
    tree: dict[str, Any] = {
        "run": {"dir": str(folder / name)},
        "data": {"dir": str(folder / data)},
        "model": {
            "width": 16,
            "max_history": 8,
            "item": {"text": False},
            "granularities": {"evolution": granularity},
        },
        "train": {
            "epochs": 12,
            "batch_size": 16,
            "metric": "ndcg@5",
            "warmup": 0.0,
            "lr": 0.02,
            "refit": False,
        },
        "evaluate": {"ks": [5], "bootstrap": 200, "baselines": ["popularity"]},
        "tracking": {"enabled": False},
    }
    for dotted, value in changes.items():
        section, key = dotted.split("__")
        tree[section][key] = value
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    config: Config = load_config(folder / f"{name}.yaml")
    with open_run(config, "run") as run:
        save_trained(
            run.model,
            fit(config, dataset, Validator.of(config.train, config.evaluate), TrainContext()),
        )
        run.write_json(
            run.model / ORIGIN, {"dataset": dataset.root, "hash": dataset.manifest.content_hash}
        )
        evaluate(config, run)
    return folder / name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    finished(folder, "good", evaluate__ks=[1, 5])
    finished(folder, "bad", train__epochs=1, train__lr=1e-6)
    return folder


def both(folder: Path, *words: str, first: str = "good", second: str = "bad") -> int:
    return main(["compare", str(folder / first), str(folder / second), *words])


def test_trained_run_is_significantly_better_than_an_untrained_one(
    folder: Path, capsys: Captured
) -> None:
    assert both(folder) == 0
    printed = capsys.readouterr().out
    assert (
        f"ndcg@5: {folder / 'good'} is significantly better" in printed
        and "72 test users, paired" in printed
    )
    record = json.loads((folder / "good/compare.json").read_text())
    found = record["metrics"]["ndcg@5"]
    for side, name in (("first", "good"), ("second", "bad")):
        metrics = json.loads((folder / name / "metrics.json").read_text())["model"]
        assert found[side] == pytest.approx(metrics["ndcg@5"], abs=1e-6), (
            "the figures of the evaluation"
        )
    assert (
        found["difference"] == pytest.approx(found["first"] - found["second"]) and found["low"] > 0
    )
    assert {name.split("@")[1] for name in record["metrics"]} == {"5"}, (
        "cut-offs that both runs have"
    )
    assert record["settings"]["train.epochs"] == [12, 1] and record["notes"] == []


def test_exchanged_runs_change_the_sign_and_a_run_equals_itself(
    folder: Path, tmp_path: Path
) -> None:
    ways = {"there": ("good", "bad"), "back": ("bad", "good"), "same": ("good", "good")}
    found = {}
    for name, (first, second) in ways.items():
        out = tmp_path / "new" / f"{name}.json"
        assert both(folder, "--compare.out", str(out), first=first, second=second) == 0
        found[name] = json.loads(out.read_text())["metrics"]["ndcg@5"]
    assert found["there"]["difference"] == pytest.approx(-found["back"]["difference"])
    assert found["there"]["low"] == pytest.approx(-found["back"]["high"])
    assert found["same"]["difference"] == 0 and found["same"]["p"] == 1
    assert not (folder / "bad/compare.json").exists(), (
        "compare.out changes the folder of the results"
    )


def test_metric_is_compared_by_the_paired_bootstrap() -> None:
    first, second = np.array([1.0, 0.0, 0.5, 1.0]), np.array([0.5, 0.0, 0.5, 0.0])
    found = paired_metrics({"mrr@3": first}, {"mrr@3": second}, 100, 7)["mrr@3"]
    assert found["first"] == 2.5 / 4 and found["second"] == 1 / 4
    assert {key: found[key] for key in ("difference", "low", "high", "p")} == compare(
        first, second, 100, 7
    ).to_json()


def test_dry_run_names_its_inputs_and_writes_nothing(folder: Path, capsys: Captured) -> None:
    (folder / "good/compare.json").unlink(missing_ok=True)
    assert both(folder, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert f"writes  {folder / 'good'}/compare.json" in printed and str(folder / "bad") in printed
    assert not (folder / "good/compare.json").exists()


def test_runs_with_different_queries_are_refused_and_the_difference_is_named(
    folder: Path, capsys: Captured
) -> None:
    finished(folder, "elsewhere", data="other", train__epochs=1)
    finished(folder, "repeating", train__epochs=1, evaluate__exclude_seen=False)
    for name, message in (
        (
            "elsewhere",
            (
                "dataset: handmade 0123456789ab and handmade other0000000 (the files of the source"
                " differ)"
            ),
        ),
        ("repeating", "exclude_seen: True and False"),
    ):
        for dry in ([], ["--dry-run"]):
            assert both(folder, *dry, second=name) == 2
            printed = capsys.readouterr().err
            assert message in printed and printed.count("\n") == 1 and "Traceback" not in printed


def test_sample_of_other_users_is_refused(folder: Path, capsys: Captured) -> None:
    finished(folder, "one", train__epochs=1, evaluate__max_users=40)
    shutil.copytree(folder / "one", folder / "two", dirs_exist_ok=True)
    settings = yaml.safe_load((folder / "two/config.yaml").read_text())
    settings["evaluate"]["max_users"] = 41
    (folder / "two/config.yaml").write_text(yaml.safe_dump(settings))
    code = both(folder, first="one", second="two")
    printed = capsys.readouterr().err
    assert (
        code,
        "evaluated users: two different samples (seed, evaluate.max_users)" in printed,
    ) == (
        2,
        True,
    ), printed


def test_folder_that_is_no_finished_run_gives_one_message(
    folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    names = ("empty", "halfway", "newer", "partial")
    empty, halfway, newer, partial = (tmp_path / name for name in names)
    empty.mkdir()
    for name in (halfway, newer, partial):
        shutil.copytree(folder / "bad", name)
    metrics = json.loads((partial / "metrics.json").read_text())
    del metrics["model"], metrics["data"]
    (partial / "metrics.json").write_text(json.dumps(metrics))
    (halfway / "metrics.json").unlink()
    shutil.rmtree(newer / "model")
    shutil.copytree(folder / "good/model", newer / "model")
    good = str(folder / "good")
    for words, message in (
        ([good, str(tmp_path / "nowhere")], "is not a folder"),
        ([good, str(empty)], "config.yaml is missing"),
        ([good, str(halfway)], "metrics.json does not exist"),
        ([good, str(partial)], "lacks data and model; run `recsys evaluate`"),
        ([good, str(newer)], "belongs to another model than the one in model/"),
        ([good], "got 1 run folders, expected two"),
        ([good, good, "--train.lr", "1"], "compare does not read --train.lr"),
    ):
        assert main(["compare", *words]) == 2
        printed = capsys.readouterr().err
        assert message in printed and "Traceback" not in printed
    assert not (tmp_path / "nowhere").exists()
