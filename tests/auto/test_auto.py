"""``model: auto``: which model is chosen for which data, and that a budget is respected."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.plumbing.progress import Progress
from pipelines.plumbing.run_folder import RunFolder
from pipelines.steps.auto import with_model
from recsys.auto.candidate_members import CANDIDATES
from recsys.auto.portfolio import configured, left_out, members, settings
from recsys.auto.traits import Traits
from recsys.config import Config, build_config, load_config
from recsys.config.values import seconds_of
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.errors import ArtifactError
from recsys.training.fresh_model import model_sizes
from recsys.training.separate_models import own_config, sections
from tests.handmade import DAY, leave_last, write_dataset
from tune.auto_search import search
from tune.ledger import Ledger, Trial
from tune.portfolio_plan import Portfolio
from tune.timing import epochs_of, in_time, with_apart

# besides events and their times
SIGNALS = ("repeat", "frequency", "place", "content", "social", "profile", "knowledge")


def _idle(*fed: str) -> Mapping[str, str]:
    """Candidates that read a signal which the data lacks."""
    return {name: f"no {name}" for name in SIGNALS if name not in fed}


PLAIN = Traits(users=1000, items=500, events=20_000, ordered=True, timed=True, idle=_idle())
CONFIG = build_config({"data": {"source": {"kind": "synthetic"}}, "train": {"metric": "ndcg@5"}})
THREE_SECONDS_AN_EPOCH = Trial(0, 0, 1, {}, history={1: {"seconds": 2.0}, 2: {"seconds": 4.0}})
KINDS = {
    "ids with order": PLAIN,
    "sets": replace(PLAIN, ordered=False, timed=False, idle={**_idle(), "moment": "no times"}),
    "a shop with repeats": replace(PLAIN, idle=_idle("repeat", "frequency", "content", "profile")),
    "places and friends": replace(PLAIN, idle=_idle("social", "place", "knowledge")),
    "many short histories with text": replace(
        PLAIN, users=100_000, items=50_000, events=800_000, idle=_idle("content")
    ),
    "baskets": replace(PLAIN, tied=True),
    "visits days apart": replace(PLAIN, look_ahead=20),
    "visits of many events": replace(PLAIN, look_ahead=0),
    "many seen items": replace(PLAIN, leaves_out_seen=True),
    "few seen items": replace(PLAIN, leaves_out_seen=False),
    "few long histories": replace(PLAIN, users=500, events=100_000),
    "large": replace(PLAIN, users=3_000_000, events=100_000_000),
}


def _forty_epochs() -> Config:
    config = configured(CONFIG, PLAIN, settings(PLAIN)[0])
    return config.model_copy(
        update={"train": config.train.model_copy(update={"epochs": 40, "refit": True})}
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_is_a_complete_configuration(kind: str) -> None:
    traits = KINDS[kind]
    found = [configured(CONFIG, traits, setting) for setting in settings(traits)]
    assert len({setting.digest() for setting in settings(traits)}) == len(found) > 1
    for config in found:
        assert (
            config.has_model
            and config.model.fusion.stack
            and config.model.granularities.are_trained
        )
        assert set(members(traits)) <= set(config.model.granularities.enabled())
        assert Config.model_validate(config.model_dump(mode="json")) == config, (
            "config.yaml can be loaded and run again"
        )
    assert not configured(CONFIG, traits, None).model.granularities.are_trained


def test_rules_of_training_and_their_opposites_are_tried() -> None:
    def found(kind: str, key: str) -> list[Any]:
        trees = [setting.train | setting.train["loss"] for setting in settings(KINDS[kind])]
        return [tree.get(key) for tree in trees]

    assert found("sets", "short_history_rate")[0] is None
    assert 0.5 in found("sets", "short_history_rate")
    assert found("many seen items", "seen_items")[0] is None
    assert "yes" in found("many seen items", "seen_items")
    assert "no" in found("few seen items", "seen_items")
    assert {"yes", "no"}.isdisjoint(found("ids with order", "seen_items"))
    assert 0 in found("visits days apart", "look_ahead")
    assert 20 in found("visits of many events", "look_ahead")
    assert set(found("ids with order", "look_ahead")) == {None}
    assert found("baskets", "shuffle_ties").count(False) == 1
    assert False not in found("ids with order", "shuffle_ties")


def test_members_are_those_that_the_data_supports() -> None:
    assert "repeat" not in members(PLAIN)
    assert {"repeat", "frequency", "profile"} <= set(members(KINDS["a shop with repeats"]))
    assert {"knowledge", "popularity"} <= set(members(KINDS["places and friends"]))
    large = KINDS["large"]
    assert "user_cf" not in members(large), "it compares all users"
    for traits in KINDS.values():
        assert {*members(traits), *left_out(traits)} == {*CANDIDATES}, (
            "every candidate is a member or has a reason"
        )
    assert (
        left_out(large)["als"] == "more than 50,000,000 events"
        and left_out(large)["place"] == "no place"
    )


@pytest.mark.parametrize("mapped", [True, False])
def test_quantity_columns_are_named_in_the_configuration(tmp_path: Path, mapped: bool) -> None:
    """With coordinates in the data, and without."""
    numbers = np.arange(12.0)
    columns = {"listPrice": pa.array(numbers + 0.99), "seller_id": pa.array(numbers.astype(int))}
    columns |= {"lat": pa.array(numbers), "lon": pa.array(numbers)} if mapped else {}
    rows = [
        leave_last(user % 12, (user + 1) % 12, (user + 2) % 12, (user + 5) % 12)
        for user in range(20)
    ]
    dataset = write_dataset(tmp_path, rows, 12, item_columns=columns)
    traits = Traits.of(dataset, CONFIG)
    assert members(traits)["place"] == {"enabled": True, "numbers": ["listPrice"]}
    place = configured(CONFIG, traits, None).model.granularities.enabled()["place"]
    assert place.model_dump()["numbers"] == ["listPrice"]
    assert model_sizes(configured(CONFIG, traits, None).model, dataset, Split.TRAIN).inputs[
        "place"
    ] == [
        ["lat", "lon"] if mapped else [],
        ["listPrice"],
    ]


@pytest.mark.parametrize("events", [150_000, 300_000, 5_000_000])
def test_wide_models_take_many_small_steps(events: int) -> None:
    traits = replace(PLAIN, users=events // 8, items=15_000, events=events)
    train = settings(traits)[0].train
    targets_a_step = train["batch_size"] * traits.length
    assert 300 * 0.9 <= targets_a_step <= 2000
    steps = train["epochs"] * (events - traits.users) / targets_a_step
    assert steps > 2500 and train["lr"] == 1e-3
    few = settings(PLAIN)[0].train
    assert few["batch_size"] == 2000 / PLAIN.length and few["lr"] == 2e-3


def test_training_keys_of_the_user_override_the_setting() -> None:
    config = configured(
        build_config(
            {
                "train": {"epochs": 3, "loss": {"temperature": 0.5}},
                "data": {"source": {"kind": "synthetic"}},
            }
        ),
        PLAIN,
        settings(PLAIN)[0],
    )
    assert config.train.epochs == 3 and config.train.loss.temperature == 0.5
    assert config.train.batch_size == settings(PLAIN)[0].train["batch_size"]


@pytest.mark.parametrize("left", [10_000.0, 250.0, 100.0])
def test_epochs_are_reduced_to_the_remaining_time(left: float) -> None:
    found = in_time(_forty_epochs(), THREE_SECONDS_AN_EPOCH, time.monotonic() + left)
    assert found is not None and found.train.refit and found.train.final
    assert 4 <= found.train.epochs <= 40
    assert found.train.epochs * 3 * 3.0 <= left, "three trainings of three seconds per epoch"
    assert (found.train.epochs == 40) == (left == 10_000.0)


@pytest.mark.parametrize(
    ("left", "names"),
    [
        (10_000.0, ["less dropout", "attention of width 64, seed + 1", "gru"]),
        (1_000.0, ["less dropout", "attention of width 64, seed + 1"]),
        (600.0, ["less dropout"]),
        (100.0, []),
    ],
)
def test_remaining_time_trains_separate_models(left: float, names: list[str]) -> None:
    portfolio = settings(PLAIN)
    values = {0: 0.10, 2: 0.099, 4: 0.09, 1: 0.05}
    trials = [
        replace(THREE_SECONDS_AN_EPOCH, number=number, epochs={1: {"value": value, "best": value}})
        for number, value in sorted(values.items())
    ]
    plan: Any = SimpleNamespace(usable=lambda: trials)
    config, costs, continued = with_apart(_forty_epochs(), plan, portfolio, trials[0], left, {})
    assert list(costs) == names and sum(map(sum, costs.values())) <= 2 * left
    assert len(continued) == sum("seed" not in name for name in names)
    apart = [
        section
        for name, section in config.model.granularities.enabled().items()
        if name.startswith("apart")
    ]
    assert [section.seed for section in apart] == [0, 1, 0][: len(names)]
    assert all(section.own_model().granularities.are_trained for section in apart)
    assert config.model.fusion.stack and all(section.train["epochs"] == 40 for section in apart)
    moved = config.model_copy(update={"train": config.train.model_copy(update={"threads": 3})})
    assert all(own_config(moved, name).train.threads == 3 for name in sections(config.model))


def test_failed_trial_is_neither_chosen_nor_trained_again_as_a_separate_model(
    tmp_path: Path,
) -> None:
    portfolio = settings(PLAIN)[:3]
    names, configs = [one.name for one in portfolio], [_forty_epochs()] * 3
    plan = Portfolio(configs, names, Ledger(tmp_path / "ledger.jsonl"), deadline=0.0)
    for number, value in enumerate((0.31, 0.35, 0.30)):
        plan.ledger.start(Trial(number, 0, 1, {}))
        trial = plan.ledger.trials[(number, 0)]
        history = [{"epoch": 1, "seconds": 1.0}]
        plan.ledger.epoch(trial, {"epoch": 1, "value": value, "best": value, "history": history})
        plan.ledger.end(
            trial, "failed" if number == 1 else "finished", reason="the loss is not finite"
        )
    first, failed, third = plan.ledger.searched()
    assert plan.best_trial() is first
    assert plan.without_checkpoints(third) == [failed]
    _, costs, _ = with_apart(_forty_epochs(), plan, portfolio, first, 10_000.0, {})
    assert list(costs) == [names[2], f"{names[0]}, seed + 1", f"{names[0]}, seed + 2"]
    for trial in (first, third):
        trial.state = "failed"
    assert plan.best_trial() is None, "every trial failed"


def test_training_cost_is_that_of_a_trial_that_was_not_cut() -> None:
    values = {3: 0.1, 6: 0.3, 9: 0.2}
    ended = replace(
        THREE_SECONDS_AN_EPOCH,
        state="finished",
        epochs={epoch: {"value": value, "best": value} for epoch, value in values.items()},
        history={epoch: {"seconds": 3.0} for epoch in range(1, 13)},
    )
    assert epochs_of(ended, _forty_epochs().train) == (12 + 6, 6)
    assert epochs_of(ended, _forty_epochs().train, done=12) == (
        6,
        6,
    ), "a continued training repeats no epoch"
    assert epochs_of(replace(ended, state="stopped"), _forty_epochs().train) == (80, 40)
    found = in_time(_forty_epochs(), ended, time.monotonic() + 150.0)
    assert found is not None and found.train.epochs == 40, "the schedule of the trial"


def test_final_training_loses_epochs_before_the_other_trainings() -> None:
    """With four trainings of forty epochs, the final one gets fewer epochs first."""
    found = in_time(_forty_epochs(), THREE_SECONDS_AN_EPOCH, time.monotonic() + 46.0)
    assert found is not None and found.train.epochs == 4 and found.train.final and found.train.refit


def test_nothing_is_trained_if_time_is_too_short_for_an_epoch() -> None:
    assert in_time(_forty_epochs(), THREE_SECONDS_AN_EPOCH, time.monotonic() + 30.0) is None


@pytest.mark.parametrize(("left", "word"), [(-40.0, "is used up"), (10.0, "has 10 s left")])
def test_budget_without_time_for_training_uses_closed_form_members(
    tmp_path: Path, left: float, word: str
) -> None:
    config, folder = _dataset_and_folder(tmp_path)
    config = config.model_copy(update={"run": config.run.model_copy(update={"budget": "5s"})})
    dataset = PreparedDataset(config.dataset_dir)
    chosen, (note,) = search(config, dataset, folder, PLAIN, time.monotonic() + left)
    assert not chosen.model.granularities.are_trained and f"the budget of 5s {word}" in note


def test_search_without_time_for_a_training_uses_closed_form_members_and_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = _dataset_and_folder(tmp_path)
    dataset = PreparedDataset(config.dataset_dir)
    names = [setting.name for setting in settings(PLAIN)]
    configs = [configured(CONFIG, PLAIN, setting) for setting in settings(PLAIN)]
    plan = Portfolio(configs, names, Ledger(tmp_path / "ledger.jsonl"), deadline=0.0)
    trial = replace(THREE_SECONDS_AN_EPOCH, epochs={1: {"value": 0.1, "best": 0.1}})
    plan.ledger.trials[(0, 0)] = trial
    left_over = folder.root / "trials" / trial.name / "checkpoint-1"
    left_over.mkdir(parents=True)
    monkeypatch.setattr("tune.auto_search._try_all", lambda *_: plan)
    chosen, lines = search(config, dataset, folder, PLAIN, time.monotonic() + 25.0)
    assert not chosen.model.granularities.are_trained and "too short for a training" in lines[-1]
    assert not left_over.exists() and not folder.head_starts


def test_only_the_first_setting_is_proposed_after_the_deadline(tmp_path: Path) -> None:
    configs = [configured(CONFIG, PLAIN, setting) for setting in settings(PLAIN)]
    ledger = Ledger(tmp_path / "ledger.jsonl")
    plan = Portfolio(
        configs,
        [setting.name for setting in settings(PLAIN)],
        ledger,
        deadline=time.monotonic() - 1,
    )
    first = plan.next(())
    assert isinstance(first, Trial) and first.number == 0
    ledger.start(first)
    ledger.end(first, "stopped", seconds=1.0)
    assert plan.next(()) is None


@pytest.mark.parametrize(
    ("text", "seconds"), [("20m", 1200), ("1h30m", 5400), ("90s", 90), ("2 h", 7200), ("", 0)]
)
def test_durations_are_parsed(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["20", "m", "20 minutes later", "-5m", "1d"])
def test_wrong_duration_error_shows_valid_forms(text: str) -> None:
    with pytest.raises(ValueError, match="20m, 1h30m or 90s"):
        seconds_of(text)


def _dataset_and_folder(tmp_path: Path) -> tuple[Config, RunFolder]:
    parts = (Split.TRAIN, Split.TRAIN, Split.TRAIN, Split.VALID, Split.TEST)
    rows = [
        [((user + day) % 7, 0, (day + 1) * DAY, part) for day, part in enumerate(parts)]
        for user in range(12)
    ]
    write_dataset(tmp_path / "data", rows, 7)
    config = build_config(
        {"data": {"dir": str(tmp_path / "data"), "source": {"kind": "synthetic"}}}
    )
    (tmp_path / "run").mkdir()
    return config, RunFolder(tmp_path / "run", Progress(None))


def test_choice_is_saved_completely_and_used_by_later_verbs(tmp_path: Path) -> None:
    config, folder = _dataset_and_folder(tmp_path)
    with pytest.raises(ArtifactError, match="run `recsys run` or `recsys train`"):
        with_model(config, folder, chooses=False)
    chosen = with_model(config, folder, chooses=True)
    assert chosen.has_model and chosen.train.final
    assert with_model(config, folder, chooses=False).model == chosen.model
    assert load_config(folder.config).model == chosen.model, (
        "config.yaml runs again without a new choice"
    )
    resources = {"num_workers": 2, "use_gpu": "no", "threads": 3, "max_failures": 7}
    moved = build_config(
        {**config.model_dump(mode="json"), "train": resources, "run": {"resume": True}}
    )
    resumed = with_model(moved, folder, chooses=True)
    assert resumed.train == chosen.train.model_copy(update=resources), "on another machine"
    assert load_config(folder.config).train == resumed.train
    other = build_config({**config.model_dump(mode="json"), "train": {"metric": "recall@5"}})
    with pytest.raises(ArtifactError, match="holds no earlier choice"):
        with_model(other, folder, chooses=False)
