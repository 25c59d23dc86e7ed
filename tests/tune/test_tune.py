"""The parts of a sweep: search space, ledger, choice of the next trial, resources of a trial, one
trial.
"""

from __future__ import annotations

import json
import math
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import yaml
from ray.tune.schedulers import TrialScheduler

from pipelines.cli import main
from pipelines.plumbing.progress import Progress
from pipelines.plumbing.run_folder import RunFolder
from recsys.config import Config, TuneConfig, build_config
from recsys.data.bounded import evaluated_users_V
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.errors import ArtifactError, ConfigError
from recsys.registry.tracking import RUN_FILE
from tests.handmade import DAY, Event, write_dataset
from tune.ledger import Ledger, Trial
from tune.outcome import comparison_words, trial_table
from tune.plan import Plan
from tune.proposals import importance, propose
from tune.ray_tune import Halving
from tune.searcher import TrialPaths, task_of
from tune.slots import share_out
from tune.space import SHIPPED, Dimension, Space, load_space, preview
from tune.sweep import sweep
from tune.sweep_report import render_sweep
from tune.trial import Task, run_trial


def _config(**sections: Any) -> Config:
    tree: dict[str, Any] = {
        "data": {"text": {"enabled": False}},
        "model": {
            "width": 8,
            "item": {"text": False},
            "granularities": {"evolution": {"enabled": True}},
        },
        "train": {"epochs": 4, "batch_size": 4, "metric": "ndcg@5", "threads": 1},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    return build_config(tree)


def _space(folder: Path, tree: Any) -> str:
    path = folder / "space.yaml"
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree), encoding="utf-8")
    return str(path)


# -------------------------------------------------------------------------------------------- space


def test_space_has_ranges_choices_and_fixed_values(tmp_path: Path) -> None:
    file = _space(
        tmp_path,
        "model.fusion.kind: weighted\n"
        "model.granularities.evolution.cell: [gru, lstm]\n"
        "train.lr: {loguniform: [1e-4, 1e-2]}\n"  # YAML 1.1 reads 1e-4 as text
        "model.width: {int: [8, 31], step: 8}\n"
        "model.granularities.evolution.weight: {uniform: [0, 1], step: 0.3}\n",
    )
    space = load_space([file], _config())
    assert space.fixed == {"model.fusion.kind": "weighted"}
    kinds = {d.path.split(".")[-1]: (d.kind, d.low, d.high, d.step) for d in space.dimensions}
    assert kinds["lr"] == ("loguniform", 1e-4, 1e-2, None)
    assert kinds["width"] == ("int", 8.0, 24.0, 8.0)  # the last value that the steps reach
    assert kinds["weight"] == ("uniform", 0.0, 0.9, 0.3)
    config = space.apply(
        _config(), {"train.lr": 0.005, "model.granularities.evolution.cell": "lstm"}
    )
    assert config.train.lr == 0.005 and config.model.fusion.kind == "weighted"
    assert config.model.granularities.evolution.cell == "lstm" and config.model.width == 8


BAD_SPACES: dict[str, tuple[Any, list[str]]] = {
    "unknown key": (
        {"train.learning_rate": [1, 2]},
        ["train.learning_rate", "unknown path", "weight_decay"],
    ),
    "unknown section": ({"trian.lr": [1, 2]}, ["there is no key 'trian'", "train"]),
    "below a value": ({"train.lr.high": [1, 2]}, ["there is no key 'high'", "it is a value"]),
    "a section": ({"train.loss": [1, 2]}, ["is a section", "temperature"]),
    "a section as value": ({"train.lr": [{"kind": 1}, 2]}, ["is a section"]),
    "no valid option": (
        {"model.granularities.evolution.cell": ["gru", "rnn"]},
        ["'rnn'", "attention"],
    ),
    "option out of range": ({"train.lr": [0.1, -1]}, ["-1", "greater than 0"]),
    "low bound": (
        {"model.granularities.evolution.dropout": {"uniform": [-0.1, 0.5]}},
        ["-0.1", "greater than or equal"],
    ),
    "high bound": (
        {"model.granularities.social.weight": {"uniform": [0, 1.5]}},
        ["1.5", "less than or equal to 1"],
    ),
    "fractions of a whole number": (
        {"model.width": {"uniform": [8, 64]}},
        ["model.width", "whole number", "use int"],
    ),
    "swapped bounds": ({"train.lr": {"uniform": [0.2, 0.1]}}, ["low < high", "[0.2, 0.1]"]),
    "one bound": ({"train.lr": {"uniform": [0.2]}}, ["[low, high]"]),
    "bounds that are not numbers": ({"train.lr": {"uniform": ["a", "b"]}}, ["[low, high]"]),
    "infinite bound": ({"train.lr": {"uniform": [0.1, float("inf")]}}, ["[low, high]"]),
    "logarithm of zero": ({"train.lr": {"loguniform": [0, 0.1]}}, ["above 0"]),
    "whole bounds": ({"model.width": {"int": [8.5, 16]}}, ["whole numbers"]),
    "unknown kind": ({"train.lr": {"normal": [0, 1]}}, ["normal", "loguniform"]),
    "two kinds": ({"train.lr": {"uniform": [0.1, 1], "choice": [1]}}, ["expected one of"]),
    "step of a choice": ({"train.lr": {"choice": [0.1, 1], "step": 1}}, ["no step"]),
    "step of a logarithm": ({"train.lr": {"loguniform": [0.1, 1], "step": 0.1}}, ["no step"]),
    "step that is too long": ({"train.lr": {"uniform": [0.1, 1], "step": 2}}, ["a step above 0"]),
    "fractional step": ({"model.width": {"int": [8, 16], "step": 1.5}}, ["whole step"]),
    "empty choice": ({"train.lr": {"choice": []}}, ["list of values"]),
    "repeated option": ({"train.lr": [0.1, 0.1]}, ["twice"]),
    "repeated key": ("train.lr: [0.1, 0.2]\ntrain.lr: [0.3, 0.4]\n", ["train.lr occurs twice"]),
    "nothing varies": ({"model.fusion.kind": "weighted"}, ["vary nothing"]),
    "empty file": ("", ["got nothing"]),
    "a list": ("- a\n", ["got list"]),
    "invalid YAML": ("a: [", ["not valid YAML"]),
    "key that is not a path": ("1: [2, 3]\n", ["1 is not a dotted path"]),
    "data": ({"data.split.valid": [0.1, 0.2]}, ["prepared dataset", "data.dir"]),
    "seed": ({"seed": [1, 2]}, ["tune.seeds"]),
    "another section": (
        {"evaluate.bootstrap": [100, 200]},
        ["this key does not change the training"],
    ),
    "the metric": ({"train.metric": ["ndcg@5", "ndcg@10"]}, ["compared by it"]),
    "workers": ({"train.num_workers": [1, 2]}, ["the resources of a trial"]),
}


@pytest.mark.parametrize("name", BAD_SPACES)
def test_bad_space_is_refused_before_anything_starts(name: str, tmp_path: Path) -> None:
    tree, expected = BAD_SPACES[name]
    with pytest.raises(ConfigError) as error:
        load_space([_space(tmp_path, tree)], _config())
    assert all(words in str(error.value) for words in expected), str(error.value)


def test_missing_unknown_and_repeated_spaces_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no search space is given.*lastfm"):
        load_space([], _config())
    with pytest.raises(ConfigError, match=r"nowhere does not exist.*lastfm"):
        load_space(["nowhere"], _config())
    file = _space(tmp_path, {"train.lr": [0.1, 0.2]})
    with pytest.raises(ConfigError, match=r"train\.lr is also in .*space\.yaml"):
        load_space([file, file], _config())


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_space_fits_the_configuration_that_it_names(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECSYS_DATA", "data")
    from recsys.config import load_config

    text = path.read_text(encoding="utf-8")
    found = re.search(r"# For (pipelines/configs/[\w-]+\.yaml)", text)
    assert found and f"--config {found[1]}" in text and f"--tune.space {path.stem}" in text
    config = load_config(Path(__file__).parents[2] / found[1])
    assert load_space([path.stem], config).dimensions


def test_early_stops_need_comparable_values(tmp_path: Path) -> None:
    """A weighted fusion contains the fitted granularities in every epoch, the other fusions only at
    the end.
    """
    files = [_space(tmp_path, {"model.fusion.kind": ["learned", "weighted"]})]
    fitted = {
        "width": 8,
        "granularities": {"evolution": {"enabled": True}, "item_cf": {"enabled": True}},
    }
    with pytest.raises(
        ConfigError, match=r"only trials with weighted include item_cf.*tune\.scheduler none"
    ):
        load_space(files, _config(model=fitted))
    assert load_space(files, _config(model=fitted, tune={"scheduler": "none"})).dimensions
    assert load_space(files, _config()).dimensions


STACKED: dict[str, Any] = {
    "width": 8,
    "item": {"text": False},
    "granularities": {
        "evolution": {"enabled": True},
        "popularity": {"enabled": True},
        "item_cf": {"enabled": True},
        "apart_1": {
            "kind": "apart",
            "enabled": True,
            "model": {"granularities": {"evolution": {"enabled": True}}},
        },
    },
    "fusion": {"kind": "learned", "stack": True},
}


def test_trials_of_a_stacked_model_train_its_trained_part(dataset: str, tmp_path: Path) -> None:
    """Else they measure members without weights, and fail with a separate model."""
    config = _config(model=STACKED)
    plan = Plan(
        config,
        load_space([_space(tmp_path, {"train.lr": [0.01, 0.02]})], config),
        Ledger(tmp_path / "ledger.jsonl"),
    )
    for trial in (Trial(0, 0, 42, {}), Trial(1, 0, 42, {"train.lr": 0.02})):
        own = plan.config_of(trial)
        assert list(own.model.granularities.enabled()) == ["evolution"]
        assert not own.model.fusion.stack and own.train.lr == trial.params.get("train.lr", 0.001)
    reports: list[dict[str, Any]] = []
    run_trial(_task(dataset, tmp_path, plan.config_of(Trial(0, 0, 42, {}))), reports.append)
    assert reports[-1]["state"] == "finished"
    assert reports[-1]["value"] == pytest.approx(reports[-2]["best"], abs=1e-6)
    plan.ledger.start(Trial(0, 0, 42, {}))
    plan.ledger.end(plan.ledger.trials[(0, 0)], "finished", value=0.1, seconds=1.0)
    assert plan.best_config() == config, "the final training is that of the whole model"


def test_sweep_over_nothing_that_trials_train_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _space(tmp_path, {"model.granularities.item_cf.rank": [4, 8]})
    with pytest.raises(ConfigError, match=r"item_cf\.rank changes no trial.*remove the path"):
        load_space([file], _config(model=STACKED))
    fitted = {**STACKED, "granularities": {"popularity": {"enabled": True}}}
    with pytest.raises(ConfigError, match="no granularity is trained"):
        load_space([file], _config(model=fitted))
    assert load_space([file], _config(model={**fitted, "fusion": {"stack": False}})).dimensions
    off = _space(tmp_path, {"model.granularities.evolution.enabled": [True, False]})
    plan = Plan(
        _config(model=STACKED), load_space([off], _config(model=STACKED)), Ledger(tmp_path / "l")
    )
    with pytest.raises(ConfigError, match="no granularity is trained"):
        plan.config_of(Trial(1, 0, 42, {"model.granularities.evolution.enabled": False}))
    words = yaml.safe_dump({"model": fitted, "tune": {"space": [file]}})
    (tmp_path / "c.yaml").write_text(words, encoding="utf-8")
    assert main(["tune", "--config", str(tmp_path / "c.yaml"), "--dry-run"]) == 2
    assert "no granularity is trained" in capsys.readouterr().err


def test_dry_run_shows_the_space_and_refuses_a_bad_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _space(tmp_path, {"train.lr": {"loguniform": [0.001, 0.1]}})
    demo = str(Path(__file__).parents[2] / "pipelines" / "configs" / "demo.yaml")
    assert main(["tune", "--config", demo, "--tune.space", file, "--dry-run"]) == 0
    assert "20 trials over:\n# train.lr  0.001 to 0.1 (log)" in capsys.readouterr().out
    assert (
        main(
            [
                "tune",
                "--config",
                demo,
                "--tune.space",
                _space(tmp_path, {"train.lr": [-1, 1]}),
                "--dry-run",
            ]
        )
        == 2
    )
    assert "greater than 0" in capsys.readouterr().err
    assert preview(
        _config(tune={"space": _space(tmp_path, {"train.lr": [1, 2]}), "trials": 3})
    ).startswith("3 trials")


# ---------------------------------------------------------------------------------- ledger and plan


def _plan(folder: Path, tree: dict[str, Any] | None = None, **tune: Any) -> Plan:
    config = _config(tune={"trials": 4, "best": 1, "seeds": 2, **tune})
    space = load_space([_space(folder, tree or {"train.lr": {"loguniform": [1e-4, 0.1]}})], config)
    return Plan(config, space, Ledger(folder / "ledger.jsonl"))


def _value(trial: Trial) -> float:
    """A made-up metric: best at a learning rate of 0.01."""
    lr = trial.params.get("train.lr", 0.001)
    return round(0.3 - 0.1 * abs(float(np.log10(lr)) + 2) + 0.001 * trial.seed, 6)


def _run_trials(plan: Plan, until: int | None = None) -> None:
    """Run the plan with made-up trials, at most ``until`` of them."""
    while (until is None or len(plan.ledger.trials) < until) and isinstance(
        trial := plan.next(()), Trial
    ):
        plan.ledger.start(trial)
        trial = plan.ledger.trials[(trial.number, trial.repeat)]
        value = _value(trial)
        plan.ledger.epoch(
            trial,
            {"epoch": 1, "value": value, "best": value, "history": [{"epoch": 1, "loss": 1.0}]},
        )
        plan.ledger.end(trial, "finished", value=value, seconds=1.0)


def test_plan_begins_with_the_given_configuration_and_ends_with_other_seeds(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    _run_trials(plan)
    keys = list(plan.ledger.trials)
    assert keys[:4] == [(0, 0), (1, 0), (2, 0), (3, 0)] and plan.ledger.trials[(0, 0)].params == {}
    best = max(range(4), key=lambda number: _value(plan.ledger.trials[(number, 0)]))
    assert keys[4:] == [(best, 1), (0, 1)] and plan.best().number == best
    assert [trial.seed for trial in plan.ledger.of(best)] == [42, 43]
    assert plan.best().mean == pytest.approx(_value(plan.ledger.trials[(best, 0)]) + 0.0005)
    config = plan.config_of(plan.ledger.trials[(best, 1)])
    assert config.seed == 43 and not config.train.refit and plan.best_config().seed == 42


def test_interrupted_sweep_proposes_the_same_trials_as_an_uninterrupted_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = _plan(tmp_path / "a", trials=9)
    _run_trials(whole)
    for until in (3, 7, None):  # each time from the file alone
        part = _plan(tmp_path / "b", trials=9)
        _run_trials(part, until)
    assert list(part.ledger.trials) == list(whole.ledger.trials)
    assert [t.params for t in part.ledger.trials.values()] == [
        t.params for t in whole.ledger.trials.values()
    ]


def test_interrupted_trial_comes_first_and_keeps_its_number(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    _run_trials(plan, 2)
    started = plan.next(())
    assert isinstance(started, Trial)
    plan.ledger.start(started)
    again = _plan(tmp_path)
    found = again.next(())
    assert isinstance(found, Trial) and found == plan.ledger.trials[(2, 0)]
    assert isinstance(after := again.next([(2, 0)]), Trial) and after.number == 3
    plan.ledger.start(after)
    assert _plan(tmp_path).next([(2, 0), (3, 0)]) == "wait"  # the best trials are not known yet


def test_incomplete_last_line_of_the_ledger_is_removed(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    _run_trials(plan, 2)
    path = tmp_path / "ledger.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"event": "end", "trial": 1, "st')
    assert Ledger(path).trials == plan.ledger.trials and path.read_bytes() == whole


def test_damaged_line_of_the_ledger_is_named(tmp_path: Path) -> None:
    _run_trials(_plan(tmp_path), 2)
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b"nonsense\n" + path.read_bytes())
    with pytest.raises(ArtifactError, match=r"ledger\.jsonl, line 1 is damaged"):
        Ledger(path)


def test_each_point_of_a_small_space_is_tried_once(tmp_path: Path) -> None:
    plan = _plan(
        tmp_path,
        {"model.granularities.evolution.cell": ["gru", "lstm", "attention"]},
        trials=9,
        seeds=1,
    )
    _run_trials(plan)
    cells = [
        trial.params.get("model.granularities.evolution.cell", "attention")
        for trial in plan.ledger.searched()
    ]
    # the given configuration counts
    assert sorted(cells) == ["attention", "gru", "lstm"] and plan.exhausted


def test_search_finds_the_better_region(tmp_path: Path) -> None:
    """TPE's later proposals are nearer to the best learning rate than random ones."""
    far: dict[str, list[float]] = {"tpe": [], "random": []}
    for sampler in far:
        (tmp_path / sampler).mkdir()
        plan = _plan(tmp_path / sampler, trials=40, sampler=sampler)
        _run_trials(plan, 40)
        late = [trial.params["train.lr"] for trial in plan.ledger.searched()[25:]]
        far[sampler] = [abs(float(np.log10(lr)) + 2) for lr in late]
    assert np.mean(far["tpe"]) < 0.6 * np.mean(far["random"])


def test_search_avoids_the_region_of_failed_trials() -> None:
    space = Space((Dimension("x", "uniform", (), 0.0, 1.0),))
    trials = [
        Trial(n, 0, 0, {"x": n / 40}, "failed" if n < 10 else "finished", value=0.5)
        for n in range(20)
    ]
    trials = [replace(t, value=None) if t.state == "failed" else t for t in trials]
    found = [propose(space, trials, 20 + n, sampler="tpe", seed=n, planned=30) for n in range(12)]
    assert np.mean([point["x"] > 0.25 for point in found if point]) > 0.8


def test_importance_names_the_setting_that_changes_the_metric() -> None:
    space = Space((Dimension("x", "uniform", (), 0.0, 1.0), Dimension("y", "choice", ("a", "b"))))
    generator = np.random.default_rng(0)
    trials = []
    for number in range(30):
        x, y = float(generator.random()), "ab"[number % 2]
        trials.append(Trial(number, 0, 0, {"x": x, "y": y}, "finished", value=x))
    found = importance(space, trials)
    assert list(found)[0] == "x" and found["x"] > 0.8
    assert importance(space, trials[:3]) == {}


# ----------------------------------------------------------------------------------------- stopping


def _halving(plan: Plan, min_epochs: int = 1, epochs: int = 9) -> Halving:
    search: Any = SimpleNamespace(running={}, plan=SimpleNamespace(deadline=math.inf))
    return Halving(search, min_epochs, epochs, 2)


def _is_stopped(halving: Halving, trial: Trial, epoch: int, best: float) -> bool:
    """Whether Halving stops a trial after this report."""
    unused: Any = None
    halving.search.running[trial.name] = trial
    ray_trial: Any = SimpleNamespace(trial_id=trial.name)
    halving.on_trial_add(unused, ray_trial)
    return (
        halving.on_trial_result(unused, ray_trial, {"epoch": epoch, "best": best})
        == TrialScheduler.STOP
    )


def test_worse_half_is_stopped_at_a_rung_except_the_first_trial_and_repetitions(
    tmp_path: Path,
) -> None:
    halving = _halving(_plan(tmp_path))
    # alone: the cut is the median of the earlier values
    assert not _is_stopped(halving, Trial(0, 0, 1, {}), 1, 0.2)
    assert not _is_stopped(halving, Trial(1, 0, 1, {}), 1, 0.4)
    assert _is_stopped(halving, Trial(2, 0, 1, {}), 1, 0.29)  # median of 0.2 and 0.4 is 0.3
    assert not _is_stopped(halving, Trial(3, 0, 1, {}), 1, 0.3)
    assert not _is_stopped(halving, Trial(0, 0, 1, {}), 2, 0.1)
    assert not _is_stopped(halving, Trial(1, 1, 1, {}), 1, 0.0)
    assert not _is_stopped(halving, Trial(4, 0, 1, {}), 9, 0.9), (
        "a trial at its last epoch is not stopped"
    )


def test_resumed_sweep_restores_its_rungs_from_the_ledger(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    for number, best in enumerate((0.2, 0.4, 0.1)):
        trial = Trial(number, 0, 42, {} if number == 0 else {"train.lr": 0.01 * number})
        plan.ledger.start(trial)
        trial = plan.ledger.trials[(number, 0)]
        plan.ledger.epoch(trial, {"epoch": 1, "value": best, "best": best, "history": []})
        if number < 2:
            plan.ledger.end(trial, "finished", value=best, seconds=1.0)
    halving = _halving(plan)
    stopped = halving.replay(plan.ledger)
    assert [trial.number for trial in stopped] == [2], (
        "the driver was killed between the decision and the end of the trial"
    )
    # the rung holds 0.2, 0.4 and 0.1, with median 0.2; none of them counts twice
    assert _is_stopped(halving, Trial(3, 0, 42, {}), 1, 0.19) and not _is_stopped(
        halving, Trial(1, 0, 42, {}), 1, 0.0
    )


# -------------------------------------------------------------------------------------------- slots


@pytest.mark.parametrize(
    ("cluster", "train", "tune", "concurrent", "cpus", "gpu"),
    [
        ({"CPU": 2}, {"threads": 1}, {}, 1, 1, False),  # one CPU is kept for the driver
        # unless the configuration asks for it
        ({"CPU": 2}, {"threads": 1}, {"concurrent": 2}, 2, 1, False),
        ({"CPU": 2}, {"threads": 0}, {}, 1, 2, False),
        ({"CPU": 16}, {"threads": 4}, {}, 3, 4, False),
        ({"CPU": 16}, {"threads": 4}, {"cpus": 2}, 7, 2, False),
        ({"CPU": 1}, {"threads": 1}, {}, 1, 1, False),
        ({"CPU": 16, "GPU": 2}, {"threads": 4}, {}, 2, 4, True),
        ({"CPU": 16, "GPU": 2}, {"threads": 4, "use_gpu": "no"}, {}, 3, 4, False),
        ({"CPU": 16}, {"num_workers": 4}, {}, 3, 4, False),
        ({"CPU": 16, "GPU": 4}, {"num_workers": 2}, {}, 2, 2, True),
    ],
)
def test_number_of_concurrent_trials_fits_the_cluster(
    cluster: dict[str, float],
    train: dict[str, Any],
    tune: dict[str, Any],
    concurrent: int,
    cpus: int,
    gpu: bool,
) -> None:
    config = _config(train={"metric": "ndcg@5", **train}, tune=tune)
    slots = share_out(config.train, config.tune, cluster, int(cluster["CPU"]))
    assert (slots.concurrent, slots.cpus, slots.use_gpu) == (concurrent, cpus, gpu)
    assert concurrent * cpus <= cluster["CPU"]
    if config.train.num_workers > 1:
        assert "CPU" not in slots.resources, "the workers need them"
    assert ("one trial after another" in slots.words) == (concurrent == 1)


@pytest.mark.parametrize(
    ("train", "tune", "words"),
    [
        (
            {"num_workers": 3},
            {},
            "a trial needs 3 CPUs, but the cluster has 2; lower train.num_workers",
        ),
        ({"threads": 4}, {}, "lower tune.cpus"),
        ({"threads": 1}, {"concurrent": 3}, "expected at most 2"),
        ({"use_gpu": "yes"}, {}, "has 0 GPUs"),
    ],
)
def test_trials_that_do_not_fit_the_cluster_are_refused(
    train: dict[str, Any], tune: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        config = _config(train={"metric": "ndcg@5", **train}, tune=tune)
        share_out(config.train, config.tune, {"CPU": 2}, 2)


# ---------------------------------------------------------------------------------------- one trial


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    generator = np.random.default_rng(0)
    histories: list[list[Event]] = []
    parts = [Split.TRAIN] * 4 + [Split.VALID, Split.TEST]
    for _ in range(12):
        items = generator.permutation(8)[:6].tolist()
        histories.append(
            [
                (item, 0, (n + 1) * DAY, part)
                for n, (item, part) in enumerate(zip(items, parts, strict=True))
            ]
        )
    return write_dataset(tmp_path_factory.mktemp("tune-data"), histories, 8).root


def _task(dataset: str, folder: Path, config: Config, best: float | None = None) -> Task:
    tree = config.model_copy(
        update={"train": config.train.model_copy(update={"refit": False})}
    ).model_dump(mode="json")
    return Task(1, 0, tree, dataset, str(folder), 1, False, config.seed, best)


def test_trial_reports_every_validated_epoch_and_the_value_of_the_selected_model(
    dataset: str, tmp_path: Path
) -> None:
    reports: list[dict[str, Any]] = []
    run_trial(
        _task(dataset, tmp_path, _config(train={"evaluate_every": 2, "metric": "ndcg@5"})),
        reports.append,
    )
    *epochs, last = reports
    assert [report["epoch"] for report in epochs][:2] == [2, 4]
    assert [values["epoch"] for values in epochs[0]["history"]] == [1, 2]
    assert all(
        report["best"] == max(r["value"] for r in epochs[: n + 1])
        for n, report in enumerate(epochs)
    )
    assert last["state"] == "finished" and last["value"] == pytest.approx(
        epochs[-1]["best"], abs=1e-6
    )
    assert len(last["values"]) == 12 and float(last["values"].mean()) == pytest.approx(
        last["value"], abs=1e-6
    )


def test_trial_is_measured_on_the_sampled_users_of_its_epochs_with_any_seed(
    dataset: str, tmp_path: Path
) -> None:
    config = _config(evaluate={"max_users": 5}, train={"metric": "ndcg@5"})
    number = int(evaluated_users_V(PreparedDataset(dataset), config.evaluate, config.seed).sum())
    assert 0 < number < 12
    reports: list[dict[str, Any]] = []
    run_trial(_task(dataset, tmp_path, config), reports.append)
    *epochs, last = reports
    assert len(last["values"]) == number
    assert last["value"] == pytest.approx(epochs[-1]["best"], abs=1e-6)
    again = _task(dataset, tmp_path, config.model_copy(update={"seed": config.seed + 1}))
    run_trial(replace(again, sample_seed=config.seed), reports.append)
    assert len(reports[-1]["values"]) == number, "their values are paired with those above"
    plan = Plan(config, Space(()), Ledger(tmp_path / "ledger.jsonl"))
    paths, slots = (
        TrialPaths(dataset, tmp_path),
        share_out(config.train, config.tune, {"CPU": 2}, 2),
    )
    task = task_of(plan, Trial(0, 1, config.seed + 1, {}), config, paths, slots)
    assert task.sample_seed == config.seed


def test_stopped_trial_continues_from_its_checkpoint_to_the_same_result(
    dataset: str, tmp_path: Path
) -> None:
    config = _config()
    whole: list[dict[str, Any]] = []
    run_trial(_task(dataset, tmp_path / "none", config), whole.append)
    first: list[dict[str, Any]] = []

    def stop(report: dict[str, Any]) -> None:
        if len(first) == 2:
            raise SystemExit
        first.append(report)

    with pytest.raises(SystemExit):
        run_trial(_task(dataset, tmp_path, config), stop)
    second: list[dict[str, Any]] = []
    run_trial(_task(dataset, tmp_path, config, first[-1]["best"]), second.append)
    assert [r["epoch"] for r in (*first, *second[:-1])] == [r["epoch"] for r in whole[:-1]]
    assert [r["value"] for r in (*first, *second)] == pytest.approx(
        [r["value"] for r in whole], abs=1e-6
    )
    assert second[0]["best"] == whole[2]["best"]


def test_error_in_a_trial_becomes_a_report(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[dict[str, Any]] = []
    heads = {
        "width": 8,
        "item": {"text": False},
        "granularities": {"evolution": {"enabled": True, "heads": 3}},
    }
    run_trial(_task(dataset, tmp_path, _config(model=heads)), reports.append)
    assert (
        reports[-1]["state"] == "failed"
        and reports[-1]["blame"] == "user"
        and "heads" in reports[-1]["reason"]
    )

    def out_of_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    monkeypatch.setattr("tune.trial.fit", out_of_memory)
    run_trial(_task(dataset, tmp_path, _config()), reports.append)
    assert reports[-1]["blame"] == "program" and "Traceback" in reports[-1]["trace"]
    assert reports[-1]["reason"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"


def test_trial_with_a_non_finite_loss_fails(dataset: str, tmp_path: Path) -> None:
    reports: list[dict[str, Any]] = []
    run_trial(
        _task(dataset, tmp_path, _config(train={"lr": 1e30, "clip_norm": 0, "metric": "ndcg@5"})),
        reports.append,
    )
    assert reports[-1]["state"] == "failed" and "lower train.lr" in reports[-1]["reason"]


# ------------------------------------------------------------------------------------------ outcome


def _finished(folder: Path) -> Plan:
    """A sweep with a best trial that is better than trial 0 for every user."""
    plan = _plan(
        folder,
        {"train.lr": {"loguniform": [1e-4, 0.1]}, "model.fusion.kind": ["learned", "gated"]},
        trials=6,
    )
    _run_trials(plan)
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.01, 50)
    noise -= noise.mean()
    for trial in plan.ledger.trials.values():
        place = folder / "trials" / trial.name
        place.mkdir(parents=True)
        np.save(
            place / "valid.npy", (_value(trial) + noise * (1 + trial.number)).astype(np.float32)
        )
    return plan


def test_best_trial_is_compared_with_the_given_configuration_user_by_user(tmp_path: Path) -> None:
    plan = _finished(tmp_path)
    words = comparison_words(plan, tmp_path)
    best, default = plan.best(), plan.ledger.of(0)
    expected = best.mean - np.mean([_value(trial) for trial in default])
    assert best.number != 0 and f"{expected:+.4f}" in words and "(mean of 2 seeds)" in words
    table = trial_table(plan).splitlines()
    assert table[1].startswith(f"{best.number:03d}") and any(
        line.startswith("000 (as given)") for line in table
    )


@pytest.mark.parametrize(("failed", "best"), [(0, "Trial 001"), (1, "The given configuration")])
def test_page_names_the_best_trial_if_another_one_failed(
    tmp_path: Path, failed: int, best: str
) -> None:
    plan = _plan(tmp_path, trials=2, seeds=1)
    for number in range(2):
        plan.ledger.start(Trial(number, 0, 42, {"train.lr": 0.01} if number else {}))
        trial = plan.ledger.trials[(number, 0)]
        if number == failed:
            plan.ledger.end(trial, "failed", reason="out of memory", blame="program")
        else:
            plan.ledger.end(trial, "finished", value=0.4, seconds=1.0)
    render_sweep(tmp_path / "sweep.html", plan, tmp_path)
    page = (tmp_path / "sweep.html").read_text(encoding="utf-8")
    assert f"<b>{best} is best.</b>" in page


def test_page_shows_every_trial_and_escapes_texts_of_users(tmp_path: Path) -> None:
    plan = _finished(tmp_path)
    failed = Trial(6, 0, 42, {"train.lr": 0.05, "model.fusion.kind": "gated"})
    plan.ledger.start(failed)
    plan.ledger.end(
        plan.ledger.trials[(6, 0)], "failed", reason="<script>alert(1)</script>", blame="user"
    )
    plan.config.run.name = "<b>mine</b>"
    render_sweep(tmp_path / "sweep.html", plan, tmp_path)
    html = (tmp_path / "sweep.html").read_text(encoding="utf-8")
    assert "<script" not in html and "<b>mine" not in html and "&lt;script&gt;" in html
    assert all(
        f"trial {trial.name}" in html
        for trial in plan.ledger.searched()
        if trial.state == "finished"
    )
    assert html.count("<path") >= 12 and "Importance of the settings" in html


def test_continued_sweep_with_a_better_trial_trains_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repeated command trains nothing; a better trial is trained, in an MLflow run of its own."""
    tracker, trained = MagicMock(), []
    unknown = SimpleNamespace(content_hash="h")
    data = SimpleNamespace(manifest=unknown, root=str(tmp_path / "data"), num_users=5)
    monkeypatch.setattr("tune.sweep.tracked", lambda *_, **__: nullcontext(tracker))
    monkeypatch.setattr("tune.sweep.ray_session", lambda *_: nullcontext())
    monkeypatch.setattr("tune.sweep.prepare", lambda *_: data)
    monkeypatch.setattr("tune.sweep.comparison_words", lambda *_: "")
    monkeypatch.setattr("tune.sweep.render_sweep", lambda *_: None)
    monkeypatch.setattr("tune.sweep._search", lambda plan, *_: _run_trials(plan))
    monkeypatch.setattr("tune.sweep._train_best", lambda config, _: trained.append(config.train.lr))
    monkeypatch.setattr(
        "tune.sweep._finish_best",
        lambda config, _: {"metric": "ndcg@5", "test": 0.1, "words": f"model lr {config.train.lr}"},
    )
    known = tmp_path / "best" / RUN_FILE
    known.parent.mkdir()
    known.write_text("{}")
    for trials, final, expected in ((1, True, 0.001), (1, True, 0.001), (2, False, None)):
        _sweep(tmp_path, trials, final)
        assert trained == [0.001]
        words = "" if expected is None else f"model lr {expected}"
        assert Ledger(tmp_path / "trials" / "ledger.jsonl").final.get("words", "") == words
        assert known.exists() == final
    for _ in range(2):
        _sweep(tmp_path, 2, True)
        assert trained == [0.001, 0.01]
        assert Ledger(tmp_path / "trials" / "ledger.jsonl").final["words"] == "model lr 0.01"


def _sweep(folder: Path, trials: int, final: bool) -> None:
    """Sweep over the learning rate: 0.001 as given, then 0.01, which is better."""
    space = _space(folder, {"train.lr": [0.001, 0.01]})
    tune = {"space": [space], "trials": trials, "seeds": 1, "final": final}
    sweep(
        _config(train={"lr": 0.001}, run={"dir": str(folder)}, tune=tune),
        RunFolder(folder, Progress(None)),
    )


def test_sweep_needs_a_local_disk() -> None:
    unused: Any = None
    with pytest.raises(ConfigError, match="give a local --run.dir"):
        sweep(_config(run={"dir": "s3://bucket/run"}), unused)


def test_default_search_is_a_sweep_of_trials() -> None:
    assert json.loads(TuneConfig().model_dump_json())["search"] == "trials"
