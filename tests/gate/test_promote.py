"""`recsys promote`: a better model becomes champion, a worse one does not, and MLflow records both
decisions.
"""

from __future__ import annotations

import ast
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient

from pipelines.cli import main
from recsys.bundle.description import WEIGHTS
from recsys.config import Config, PromoteConfig, build_config, load_config
from recsys.data.context_columns import ContextColumn
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.evaluation.validation import Validator
from recsys.gate.cross_dataset import CrossDatasetScorer, leak_of
from recsys.gate.promotion import (
    Findings,
    against_baselines,
    against_champion,
    against_drift,
    ranked,
)
from recsys.registry.card import model_card
from recsys.registry.minimum import alias_command, check_minimum, num_events
from recsys.registry.mlflow_client import client, tracking_uri
from recsys.registry.provenance import lineage
from recsys.registry.register import RegisteredModel, register
from recsys.registry.resolve import resolve
from recsys.registry.run_tags import UNKNOWN, working_commit
from recsys.registry.tracking import Tracker
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.training.context import TrainContext
from recsys.training.phases import fit
from tests.handmade import Event, leave_last, write_dataset

Captured = pytest.CaptureFixture[str]
ITEMS = 24

# -------------------------------------------------------------------------------------------- rules


def rules(**promote: Any) -> Config:
    tree = {
        "model": {"granularities": {"evolution": {"enabled": True}}},
        "evaluate": {"bootstrap": 500},
    }
    return build_config({**tree, "promote": promote})


def compared(
    ours: list[float], theirs: list[float], groups: Mapping[str, Any] | None = None, **promote: Any
) -> Findings:
    findings = Findings()
    against_champion(
        np.array(ours), np.array(theirs), dict(groups or {}), rules(**promote), findings
    )
    return findings


def test_better_requires_the_whole_interval_above_zero() -> None:
    clear = compared([0.5, 0.6] * 50, [0.4, 0.5] * 50)
    assert clear.reasons == [] and clear.comparison["difference"] == pytest.approx(0.1)
    noisy = compared([1.0, 0.0] * 50 + [1.0] * 4, [0.0, 1.0] * 50 + [0.0] * 4)
    assert noisy.comparison["difference"] > 0 > noisy.comparison["low"]
    assert "promote.rule better requires the whole interval above zero" in noisy.reasons[0]
    same = compared([0.5] * 40, [0.5] * 40)
    assert same.comparison["p"] == 1 and len(same.reasons) == 1


def test_not_worse_allows_a_margin_relative_to_the_champion() -> None:
    ours, theirs = [0.495, 0.395] * 50, [0.5, 0.4] * 50  # significantly lower, by 1.1 %
    assert compared(ours, theirs, rule="not_worse", margin=0.02).reasons == []
    assert "a loss of 1.0%" in compared(ours, theirs, rule="not_worse", margin=0.01).reasons[0]


def test_significant_segment_loss_above_the_bound_refuses() -> None:
    few_B = np.arange(200) < 40
    ours = np.where(few_B, 0.3, 0.7) + 0.01 * np.tile([1, -1], 100)
    theirs = np.where(few_B, 0.4, 0.5) + 0.01 * np.tile([-1, 1], 100)
    groups = {"friends": {"without friends": few_B, "with friends": ~few_B}}
    findings = compared(ours.tolist(), theirs.tolist(), groups)
    assert findings.comparison["difference"] > 0 and len(findings.reasons) == 1
    assert "without friends (40 users: 0.3000 against 0.4000, -25.0%" in findings.reasons[0]
    assert compared(ours.tolist(), theirs.tolist(), groups, max_segment_loss=0.3).reasons == []
    few = compared(ours.tolist(), theirs.tolist(), groups, min_segment_users=50)
    assert (
        few.reasons == []
        and few.comparison["segments"]["friends"]["without friends"]["judged"] is False
    )


def test_drift_above_the_bound_refuses_and_is_named() -> None:
    drift = {
        "events": 100,
        "unknown_items": 0.6,
        "unknown_users": 0.9,
        "popularity_shift": 0.1,
        "miscalibration": None,
    }
    findings = Findings()
    against_drift(drift, PromoteConfig(), findings)
    assert (
        len(findings.reasons) == 1
        and "0.600, at most 0.5 (promote.max_unknown_items)" in findings.reasons[0]
    )
    wide = Findings()
    against_drift(drift, PromoteConfig(max_unknown_items=None), wide)
    against_drift(None, PromoteConfig(), wide)
    assert wide.reasons == [] and len(wide.checks) == 1, "a model that is no update has no drift"


def test_segment_loss_within_chance_is_accepted() -> None:
    """The mean is a quarter lower, but as many users gain as lose."""
    ours = [0.0, 1.0, 0.0] * 10 + [1.0] * 90
    theirs = [1.0, 0.0, 0.0] * 10 + [0.0] * 90
    theirs[:3] = [1.0, 1.0, 1.0]
    groups = {"g": {"mixed": np.arange(120) < 30, "rest": np.arange(120) >= 30}}
    findings = compared(ours, theirs, groups)
    entry = findings.comparison["segments"]["g"]["mixed"]
    assert entry["loss"] > 0.1 and entry["high"] > 0 and findings.reasons == []


def test_every_baseline_must_be_beaten() -> None:
    good = {"difference": 0.1, "low": 0.05, "high": 0.15, "p": 0.002}
    even = {"difference": 0.01, "low": -0.02, "high": 0.04, "p": 0.5}
    for against, number in (({"ease": good}, 0), ({"ease": good, "als": even}, 1), ({}, 1)):
        findings = Findings()
        against_baselines({"metric": "ndcg@5", "against": against}, PromoteConfig(), findings)
        assert len(findings.reasons) == number
    assert "evaluate.baselines is empty" in findings.reasons[0]
    against_baselines(
        {"metric": "ndcg@5", "against": {}},
        PromoteConfig(beat_baselines=False),
        found := Findings(),
    )
    assert found.reasons == [] and "were not compared" in found.notes[0]


# --------------------------------------------------------------------------------------- whole verb


def circle(start: int, length: int) -> list[int]:
    """All users cycle through the items: a model that knows the order can predict the next item."""
    return [(start + step) % ITEMS for step in range(length)]


class World:
    """Models of a growing dataset in one registry."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        histories: list[list[Event]] = [
            leave_last(*circle(5 * user, 6 + user % 3)) for user in range(72)
        ]
        self.dataset = write_dataset(folder / "data", histories, ITEMS)
        known = [
            [(i, k, t, s) for i, k, t, s in events[:-2] if i < 20] for events in histories[:50]
        ]
        early: list[list[Event]] = [
            [
                (*event[:3], Split.VALID if place == len(events) - 1 else Split.TRAIN)
                for place, event in enumerate(events)
            ]
            for events in known
        ]
        write_dataset(folder / "early", early, 20)
        leaked = [[(*event[:3], Split.TRAIN) for event in events] for events in histories]
        leaked[0][-1] = (*leaked[0][-1][:3], Split.VALID)
        write_dataset(folder / "leaked", leaked, ITEMS)
        for name in ("early", "leaked"):  # other data, another hash
            manifest = folder / name / "manifest.json"
            manifest.write_text(manifest.read_text().replace("0123456789abcdef", f"{name:0<16}"))
        self.early = PreparedDataset(str(folder / "early"))
        self.leaked = PreparedDataset(str(folder / "leaked"))
        tree = {
            "run": {"dir": str(folder / "run")},
            "data": {"dir": str(folder / "data")},
            "model": {
                "width": 16,
                "max_history": 8,
                "item": {"text": False},
                "granularities": {
                    "evolution": {"enabled": True, "dropout": 0.0, "input_dropout": 0.0}
                },
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
            "registry": {"name": "pocket", "data_license": "made up"},
        }
        (folder / "c.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
        self.config = load_config(folder / "c.yaml")
        self.uri = tracking_uri(self.config.tracking, self.config.run.dir)

    def register(self, dataset: PreparedDataset, **train: Any) -> str:
        """Train, write and register a model; returns its version."""
        return str(self.registered(dataset, {"model": {}}, **train).version)

    def registered(
        self, dataset: PreparedDataset, metrics: dict[str, Any], **train: Any
    ) -> RegisteredModel:
        config = self.config.model_copy(
            update={"train": self.config.train.model_copy(update=train)}
        )
        found = fit(config, dataset, Validator.of(config.train, config.evaluate), TrainContext())
        with Tracker(config, apart=True) as tracker:
            extra = {
                "refit": found.refit,
                "lineage": lineage(config, dataset.manifest.content_hash, tracker),
            }
            card = model_card(
                config.data,
                config.model,
                config.registry,
                dataset.manifest,
                {},
                extra["lineage"],  # type: ignore[arg-type]
            )
            write_bundle(self.folder / "bundle", found.frozen, dataset, extra, None, card)
            return register(
                tracker,
                self.folder / "bundle",
                config.registry,
                metrics,
                resumes=config.run.resume,
                replaces=config.update.replace,
            )

    def promote(self, *words: str) -> int:
        return main(["promote", "--config", str(self.folder / "c.yaml"), *words])

    def record(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "run/promotion.json").read_text())
        return content

    @property
    def client(self) -> MlflowClient:
        found: MlflowClient = client(self.uri)
        return found

    def aliases(self) -> dict[str, str]:
        return {
            name: str(version)
            for name, version in self.client.get_registered_model("pocket").aliases.items()
        }

    def tags(self, version: str) -> dict[str, str]:
        return dict(self.client.get_model_version("pocket", version).tags)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> World:
    world = World(tmp_path_factory.mktemp("promote"))
    assert world.register(world.early, epochs=4) == "1"  # of fewer users, items and events
    assert world.register(world.dataset) == "2"
    assert world.register(world.dataset, epochs=1, lr=1e-6) == "3"  # has learned nothing
    return world


def test_champion_is_promoted_refused_forced_and_rolled_back(
    world: World, capsys: Captured
) -> None:
    # there is no champion: only the baselines decide; they are measured here because the bundle
    # stores none
    assert world.promote("--promote.model", "models:/pocket/1") == 0
    assert world.aliases() == {"challenger": "3", "champion": "1"}
    record = world.record()
    assert (
        record["decision"] == "promoted"
        and record["champion"] is None
        and record["comparison"] == {}
    )
    assert record["baselines"]["against"]["popularity"]["low"] > 0
    listed = [(one["version"], one["aliases"], one["events"]) for one in record["candidates"]]
    assert [version for version, _, _ in listed] == ["3", "2", "1"] and listed[0][1] == [
        "challenger"
    ]
    assert listed[0][2] > listed[2][2] > 0, "the first version was trained on fewer events"
    assert "## Versions before the decision" in (world.folder / "run/promotion.md").read_text()
    assert any("there is no champion yet" in note for note in record["notes"])

    # a better model, with users and items that the champion does not know
    capsys.readouterr()
    assert world.promote("--promote.model", "models:/pocket/2") == 0
    assert "pocket version 2 is now champion (before: version 1)" in capsys.readouterr().out
    assert world.aliases() == {"challenger": "3", "champion": "2", "previous": "1"}
    record = world.record()
    assert record["comparison"]["low"] > 0 and record["comparison"]["queries"] == 72
    assert any("it does not know 4 of 24 items" in note for note in record["notes"])
    assert record["comparison"]["segments"]["champion"]["new to the champion"]["queries"] == 22
    assert (
        world.tags("1")["promotion.replaced_by"] == "2"
        and world.tags("2")["promotion.replaced"] == "1"
    )

    # a worse model is refused with reasons: exit code 1, no alias moves
    assert world.promote() == 1
    message = capsys.readouterr().err
    assert (
        "\nrecsys: pocket version 3 is not promoted, version 2 stays champion\n  - ndcg@5 0."
        in message
    )
    assert "Traceback" not in message and "known users (72 users: " in message
    assert message.endswith("\n`--force REASON` promotes it anyway\n")
    assert world.aliases()["champion"] == "2" and world.record()["promoted"] is False
    assert world.tags("3")["promotion.decision"] == "refused"
    assert (
        "significantly worse by more than promote.max_segment_loss"
        in world.tags("3")["promotion.reasons"]
    )

    # by force, with a reason that looks like YAML
    assert world.promote("--force", "hotfix: see #7") == 0
    assert world.aliases() == {"challenger": "3", "champion": "3", "previous": "2"}
    assert (
        world.record()["decision"] == "forced"
        and world.tags("3")["promotion.force"] == "hotfix: see #7"
    )
    assert world.record()["reasons"] != []
    assert world.promote() == 0 and world.record()["decision"] == "unchanged"
    assert world.tags("3")["promotion.decision"] == "forced", "the decision that made it champion"

    # roll back, and roll back again
    assert world.promote("--rollback") == 0
    assert world.aliases() == {"challenger": "3", "champion": "2", "previous": "1"}
    assert (
        world.record()["decision"] == "rolled back"
        and world.tags("2")["promotion.decision"] == "rolled back"
    )
    assert world.promote("--promote.rollback", "true") == 0
    assert world.aliases() == {"challenger": "3", "champion": "1"}
    assert world.promote("--rollback") == 2
    assert "no champion before version 1" in capsys.readouterr().err

    # MLflow has all decisions, each as a run with its numbers and pages
    experiment = world.client.get_experiment_by_name("multigrain-promotions")
    assert experiment is not None
    runs = world.client.search_runs([experiment.experiment_id], "tags.`promotion.model` = 'pocket'")
    decisions = sorted(
        (run.data.tags["promotion.version"], run.data.tags["promotion.decision"]) for run in runs
    )
    assert decisions == [
        ("1", "promoted"),
        ("1", "rolled back"),
        ("2", "promoted"),
        ("2", "rolled back"),
        ("3", "forced"),
        ("3", "refused"),
        ("3", "unchanged"),
    ]
    refused = next(run for run in runs if run.data.tags["promotion.decision"] == "refused")
    assert refused.info.status == "FINISHED" and refused.data.metrics["promotion.high"] < 0
    assert refused.info.run_name == "promote pocket 3: refused"
    names = {file.path for file in world.client.list_artifacts(refused.info.run_id)}
    assert {"promotion.json", "promotion.md"} <= names
    page = (world.folder / "run/promotion.md").read_text()
    assert page.startswith("# pocket version 1: rolled back")
    assert not (world.folder / "run/tracking.json").exists(), (
        "the decision is in a separate run, not in the run of the stages"
    )


def test_champion_trained_on_test_events_is_refused_unless_forced(
    world: World, capsys: Captured
) -> None:
    version = world.register(world.leaked, epochs=2)
    uri = f"models:/pocket/{version}"
    bundle = read_bundle(resolve(uri, world.uri))
    leak = leak_of(bundle, world.dataset)
    assert leak == "71 of the 72 test events were training events of the model"
    before = world.aliases().get("champion", "")
    world.client.set_registered_model_alias("pocket", "champion", version)
    try:
        assert world.promote("--promote.model", "models:/pocket/2") == 1
        assert "the champion was trained on test events" in capsys.readouterr().err
    finally:
        world.client.set_registered_model_alias("pocket", "champion", before or "1")


def test_model_that_cannot_answer_is_refused_even_with_force(
    world: World, capsys: Captured
) -> None:
    version = world.register(world.dataset, epochs=1)
    place = resolve(f"models:/pocket/{version}", world.uri)
    (place / WEIGHTS).write_bytes(b"nothing")
    assert world.promote("--promote.model", f"models:/pocket/{version}", "--force", "now") == 1
    assert "the challenger cannot be loaded" in capsys.readouterr().err
    assert "promote.force has no effect" in " ".join(world.record()["notes"])


def comparison_of(low: float, high: float) -> dict[str, Any]:
    against = {"popularity": {"difference": (low + high) / 2, "low": low, "high": high, "p": 0.002}}
    return {"metric": "ndcg@5", "best_on_test": "popularity", "against": against}


def test_version_below_the_minimum_does_not_move_the_challenger(
    world: World, capsys: Captured
) -> None:
    holder = world.aliases()["challenger"]
    below = {"model": {"ndcg@5": 0.1}, "comparison": comparison_of(-0.3, -0.1)}
    worse = world.registered(world.dataset, below, epochs=1)
    smaller = world.registered(
        world.early, {"model": {}, "comparison": comparison_of(0.1, 0.3)}, epochs=1
    )
    assert world.aliases()["challenger"] == holder
    assert worse.alias == "" and worse.uri == worse.pinned_uri == f"models:/pocket/{worse.version}"
    reason = "without an alias: ndcg@5 is significantly below the baseline popularity (-0.2000"
    assert reason in worse.summary and "\n" not in worse.summary
    assert (
        f"has {num_events(asdict(world.early.manifest))} events, that of the present challenger,"
        f" version {holder}, has" in smaller.summary
    )
    assert "registry.min_data 0.9" in smaller.summary
    assert world.tags(str(worse.version))["minimum"] == "below"
    assert world.tags(str(worse.version))["minimum.why"] == worse.why

    capsys.readouterr()
    world.promote("--promote.model", f"models:/pocket/{worse.version}", "--promote.margin", "0.5")
    (row,) = [
        line
        for line in capsys.readouterr().out.splitlines()
        if "below the baseline popularity" in line
    ]
    assert (
        "0.1000" in row
        and f"{worse.version} " in row
        and "  no  ndcg@5 is significantly below" in row
    )
    notes = world.record()["notes"]
    assert any(
        note.startswith(f"version {worse.version} is below the minimum for the alias")
        for note in notes
    )


@pytest.mark.slow
def test_printed_command_sets_the_alias_by_hand(world: World, capsys: Captured) -> None:
    holder = world.aliases()["challenger"]
    below = world.registered(
        world.dataset, {"model": {}, "comparison": comparison_of(-0.3, -0.1)}, epochs=1
    )
    try:
        command = below.summary.rpartition("by hand: ")[2]
        subprocess.run(
            command.replace("python", sys.executable, 1), shell=True, check=True, timeout=120
        )
        assert world.aliases()["challenger"] == str(below.version)
    finally:
        world.client.set_registered_model_alias("pocket", "challenger", holder)


def test_scheduled_promotion_fails_when_newest_version_is_below_the_minimum(
    world: World, capsys: Captured
) -> None:
    before = world.aliases()
    below = world.registered(
        world.dataset, {"model": {}, "comparison": comparison_of(-0.3, -0.1)}, epochs=1
    )
    try:
        world.client.set_registered_model_alias("pocket", "champion", before["challenger"])
        assert world.promote("--promote.model", "models:/pocket@challenger") == 1, (
            "otherwise the failure would stay unnoticed"
        )
        error = capsys.readouterr().err
        assert (
            f"version {below.version} is not promoted, version {before['challenger']} stays"
            " champion" in error
        )
        assert f"{below.version} is newer and below the minimum" in error
        assert f"--promote.model models:/pocket/{below.version}" in error
        assert (
            world.record()["decision"]
            == world.tags(str(below.version))["promotion.decision"]
            == "refused"
        )
        assert world.promote("--promote.model", f"models:/pocket/{before['challenger']}") == 0, (
            "if requested by its number"
        )
        assert world.record()["decision"] == "unchanged"
    finally:
        world.client.set_registered_model_alias("pocket", "champion", before.get("champion", "1"))


def test_every_command_explains_why_no_version_has_the_alias(
    world: World, capsys: Captured
) -> None:
    before = world.aliases()
    below = world.registered(
        world.dataset, {"model": {}, "comparison": comparison_of(-0.3, -0.1)}, epochs=1
    )
    world.client.delete_registered_model_alias("pocket", "challenger")
    try:
        for words in (["promote"], ["update"], ["serve"], ["recommend"]):
            named = [f"--{words[0]}.model", "models:/pocket@challenger"]
            assert main([*words, "--config", str(world.folder / "c.yaml"), *named]) == 2
            out, error = capsys.readouterr()
            assert "models:/pocket@challenger is not registered" in error
            cure = f"--{words[0]}.model models:/pocket/{below.version}"
            assert error.rstrip().endswith(f"; for its newest version: {cure}")
            assert (
                f"models:/pocket/{below.version} (no alias: ndcg@5 is significantly below the"
                " baseline popularity" in error
            )
            assert ("  no  ndcg@5 is significantly below" in out) == (words == ["promote"]), (
                "the gate lists all versions"
            )
    finally:
        world.client.set_registered_model_alias("pocket", "challenger", before["challenger"])


def test_champion_changes_and_rolls_back_without_a_challenger(world: World) -> None:
    before = world.aliases()
    world.client.delete_registered_model_alias("pocket", "challenger")
    try:
        forced = [
            "--promote.model",
            "models:/pocket/1",
            "--promote.margin",
            "0.5",
            "--force",
            "a test",
        ]
        world.client.set_registered_model_alias("pocket", "champion", "2")
        assert world.promote(*forced) == 0 and world.aliases()["champion"] == "1"
        assert world.promote("--rollback") == 0 and world.aliases()["champion"] == "2"
        assert "challenger" not in world.aliases()
    finally:
        for alias, version in before.items():
            world.client.set_registered_model_alias("pocket", alias, version)


def test_interrupted_promotion_and_rollback_are_completed_by_the_same_command(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is stopped directly after it has moved the alias."""
    before = world.aliases()
    world.client.set_registered_model_alias("pocket", "champion", "2")
    world.client.set_registered_model_alias("pocket", "previous", "1")
    set_alias = MlflowClient.set_registered_model_alias

    def stopped(client: Any, name: str, alias: str, version: str) -> None:
        set_alias(client, name, alias, version)
        if alias == "champion":
            raise RuntimeError("stopped")

    def interrupted_and_again(*words: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "set_registered_model_alias", stopped)
            assert world.promote(*words) == 1
        assert world.promote(*words) == 0

    try:
        interrupted_and_again("--promote.model", "models:/pocket/3", "--force", "a test")
        assert world.aliases() == before | {"champion": "3", "previous": "2"}
        assert world.record()["decision"] == world.tags("3")["promotion.decision"] == "forced"
        assert world.record()["comparison"] and "interrupted" not in world.record()
        assert world.tags("3")["promotion.run_id"] == world.record()["promotion_run_id"]
        assert world.tags("2")["promotion.replaced_by"] == "3"
        interrupted_and_again("--rollback")
        assert world.aliases()["champion"] == "2"
        assert world.record()["decision"] == "rolled back"
        assert world.record()["champion"] == {"version": "3"}
        assert not [key for key in world.tags("2") if "rolling_back" in key]
    finally:
        for alias in world.aliases():
            world.client.delete_registered_model_alias("pocket", alias)
        for alias, version in before.items():
            world.client.set_registered_model_alias("pocket", alias, version)


def test_minimum_compares_best_baseline_and_events_of_alias_holder() -> None:
    held = {"the present challenger": 100}
    config = rules()
    even = comparison_of(-0.03, 0.01)
    assert check_minimum(even, 90, {}, config.registry, config.update.replace).passed, "chance"
    assert (
        "is not clearly better or worse than the baseline popularity (-0.0100"
        in check_minimum(even, 90, {}, config.registry, config.update.replace).why
    )
    assert not check_minimum(even, 90, held, config.registry, config.update.replace).passed, (
        "it would take the alias from a version that may be better"
    )
    assert (
        "is better than the baseline popularity (+0.0200"
        in check_minimum(
            comparison_of(0.01, 0.03), 90, held, config.registry, config.update.replace
        ).why
    )
    asked = check_minimum({}, 89, held, config.registry, config.update.replace)
    assert not asked.passed and "has 89 events" in asked.why
    assert check_minimum(
        {}, 89, {"the present challenger": 0}, config.registry, config.update.replace
    ).passed, "an alias holder without a number of events"
    assert (
        check_minimum({}, 89, {}, config.registry, config.update.replace).why
        == "no baseline was measured"
    )
    for setting in ({"registry": {"min_data": 0}}, {"update": {"replace": True}}):
        tree = {"model": {"granularities": {"evolution": {"enabled": True}}}, **setting}
        config = build_config(tree)
        assert check_minimum({}, 1, held, config.registry, config.update.replace).passed


def test_alias_command_is_quoted_for_a_shell() -> None:
    for name in ("shop", "it's", 'a "b" $HOME', "back\\slash"):
        words = shlex.split(alias_command("sqlite:///a b.db", name, "challenger", 3))
        assert words[:2] == ["python", "-c"]
        call = ast.parse(words[2]).body[-1]
        assert isinstance(call, ast.Expr) and isinstance(call.value, ast.Call)
        assert [ast.literal_eval(one) for one in call.value.args] == [name, "challenger", "3"]


def test_invalid_promotions_are_refused(world: World, capsys: Captured) -> None:
    for words, message in (
        (["--promote.model", "some/folder"], "expected a registered version"),
        (
            ["--promote.model", "models:/pocket@nobody"],
            "models:/pocket@nobody is not registered; registered models",
        ),
        (["--tracking.enabled", "false"], "tracking.enabled is false"),
        (["--promote.margin", "2"], "promote.margin"),
    ):
        assert world.promote(*words) == 2
        assert message in capsys.readouterr().err


def test_promotion_refused_for_wrong_input_leaves_no_mlflow_run(
    world: World, tmp_path: Path
) -> None:
    def runs() -> list[str]:
        experiment = world.client.get_experiment_by_name("multigrain-promotions")
        found = world.client.search_runs([experiment.experiment_id]) if experiment else []
        return [run.info.run_id for run in found]

    before = runs()
    words = ["--promote.model", "models:/pocket/1", "--tracking.uri", world.uri]
    words += ["--run.dir", str(tmp_path / "new"), "--data.dir", str(tmp_path / "nowhere")]
    assert world.promote(*words) == 2
    assert runs() == before and not (tmp_path / "new").exists()


# ----------------------------------------------------------------------------- by ids, card, digest


def test_ranking_by_ids_equals_ranking_by_dense_numbers(world: World) -> None:
    """The dataset of the bundle with reversed dense ids: the same lists for the same users."""
    bundle = read_bundle(resolve("models:/pocket/2", world.uri))
    queries = world.dataset.histories().queries(Split.TEST)
    _, direct_B = ranked(bundle.model, queries, world.config.train, world.config.evaluate)
    _, by_ids_B = ranked(
        CrossDatasetScorer(bundle, world.dataset),
        queries,
        world.config.train,
        world.config.evaluate,
    )
    assert direct_B.tolist() == by_ids_B.tolist()
    scores_BN = CrossDatasetScorer(bundle, world.early).scores(
        world.early.histories().queries(Split.VALID)
    )
    assert scores_BN.shape[1] == 20 and bool(scores_BN.isfinite().all())
    small = read_bundle(resolve("models:/pocket/1", world.uri))
    scores_BN = CrossDatasetScorer(small, world.dataset).scores(queries)
    assert scores_BN.isneginf().sum(1).unique().tolist() == [4], (
        "items that it does not know are never recommended"
    )


def test_context_is_encoded_with_the_codes_of_the_bundle() -> None:
    from recsys.gate.cross_dataset import _Recoded

    theirs = (ContextColumn("weather", ("rain", "sun")), ContextColumn("price", None, 10.0, 2.0))
    ours = (ContextColumn("price", None, 12.0, 4.0), ContextColumn("weather", ("fog", "sun")))
    codes = np.array([[1, 3], [4001, 2], [0, 0]], dtype=np.int16)  # 12 and sun, 16 and fog, nothing
    recoded = [_Recoded.of(column, ours).codes(codes).tolist() for column in theirs]
    assert recoded == [[3, 1, 0], [4001, 12001, 0]]
    assert _Recoded.of(ContextColumn("device", ("tv",)), ours).codes(codes).tolist() == [0, 0, 0]


def test_version_and_bundle_have_card_and_lineage(world: World) -> None:
    version = world.client.get_model_version("pocket", "2")
    assert {
        "git.commit",
        "git.changed",
        "config.digest",
        "dataset.content_hash",
    } <= version.tags.keys()
    assert (
        "Data licence: made up." in version.description and "MODEL_CARD.md" in version.description
    )
    bundle = resolve("models:/pocket/2", world.uri)
    card = (bundle / "MODEL_CARD.md").read_text()
    assert "- licence: made up" in card and f"- MLflow run: {version.run_id}" in card
    assert "MODEL_CARD.md" in read_bundle(bundle).info.files
    assert "MODEL_CARD.md" in {file.path for file in world.client.list_artifacts(version.run_id)}


def test_card_shows_the_numbers_of_metrics_json(world: World) -> None:
    metrics = {
        "metric": "ndcg@5",
        "model": {"ndcg@5": 0.5, "coverage@5": 0.75},
        "baselines": {"ease": {"ndcg@5": 0.25}},
        "confidence": {"model": {"ndcg@5": [0.4, 0.6]}},
        "comparison": {
            "against": {"ease": {"difference": 0.25, "low": 0.1, "high": 0.4, "p": 0.01}}
        },
        "segments": {
            "history": {"1–4": {"queries": 7, "model": {"ndcg@5": 0.3}, "interval": [0.1, 0.5]}}
        },
        "granularities": {"evolution": {"weight": 0.5, "ndcg@5_without": 0.125}},
        "data": {"queries": 72, "fitted_through": "valid", "exclude_seen": True},
    }
    made = {
        "release": "1",
        "dataset": "abc",
        "git_commit": "f00",
        "git_changed": True,
        "run_id": "r",
        "config": "d",
    }
    config = world.config
    card = model_card(
        config.data, config.model, config.registry, world.dataset.manifest, metrics, made
    )
    for line in (
        "| **ndcg@5** | 0.5000 | 0.4000 … 0.6000 |",
        "| coverage@5 | 0.7500 |  |",
        "| ease | 0.2500 | +0.2500 | +0.1000 … +0.4000 |",
        "| history: 1–4 | 7 | 0.3000 | 0.1000 … 0.5000 |",
        "| evolution | 0.5000 | 0.1250 |",
        "- git commit of the working directory: f00 (with uncommitted changes)",
    ):
        assert line in card.splitlines(), line


def test_folder_outside_git_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert working_commit(tmp_path) == (UNKNOWN, False)
