"""A run keeps its time budget: measurements predict later work, and work that does not fit is cut
or left out by name.

No test waits: the work moves the clocks.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.cli import main
from pipelines.plumbing.budget import Budget
from pipelines.plumbing.progress import Progress
from pipelines.plumbing.run_folder import RunFolder
from pipelines.steps.stacking import stacked
from recsys.auto.portfolio import configured, with_separate_model
from recsys.auto.portfolio import settings as portfolio_of
from recsys.auto.traits import Traits
from recsys.config import Config
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.evaluation.validation import Validator
from recsys.pace import Deadline
from recsys.training.checkpoint import load_checkpoint, load_progress
from recsys.training.constants import LEFT_OUT, choose_in_time, choose_values
from recsys.training.context import Report, TrainContext
from recsys.training.final import Final, fit_final, is_whole
from recsys.training.members import trained_part
from recsys.training.phases import UNREFITTED, fit
from recsys.training.selected import STACK
from tests.auto.test_auto import CONFIG, PLAIN, THREE_SECONDS_AN_EPOCH
from tests.handmade import write_dataset
from tests.training.test_training import cycles, settings
from tests.training_here import training_here
from tune.auto_search import _expect
from tune.ledger import Ledger, Trial
from tune.portfolio_plan import Portfolio, is_cut
from tune.timing import Costs, continued, is_hopeless, pace_of
from tune.trial import last_checkpoint


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# ------------------------------------------------------------------------------------------ planner


def _budget(seconds: float = 1000.0) -> tuple[Budget, Clock]:
    clock = Clock()
    return Budget("budget", seconds, 0.0, clock), clock


def test_training_leaves_time_for_later_parts() -> None:
    budget, clock = _budget()
    clock.now, budget.expected, budget.start_s = 200.0, {"trained": 300.0, "final": 100.0}, 20.0
    assert budget.training_s() == pytest.approx(800 - 0.35 * 800 - 100 - 20)
    assert budget.holds("trained") and not budget.holds("trained", slower=1.5)
    clock.now = 1200.0
    assert budget.training_s() == pytest.approx(50.0), "the least for a model"
    assert budget.training_s("apart_1") == 0.0


def test_training_leaves_more_time_for_a_large_catalogue() -> None:
    budget, clock = _budget()
    clock.now, budget.kept_s = 200.0, 300.0
    assert budget.training_s() == pytest.approx(500 - 0.35 * 500)
    assert budget.members_s() == pytest.approx(250.0)


def test_members_get_half_of_the_time_before_the_final_training_and_always_a_minimum() -> None:
    budget, clock = _budget()
    clock.now, budget.expected = 500.0, {"final": 100.0}
    assert budget.members_s() == pytest.approx(200.0)
    clock.now = 990.0
    assert budget.members_s() == pytest.approx(150.0)


@pytest.mark.parametrize(
    ("now", "epochs"), [(500.0, None), (800.0, None), (1000.0, 4), (1060.0, 2), (1200.0, 0)]
)
def test_training_on_all_events_is_complete_or_continues_or_is_left_out(
    now: float, epochs: int | None
) -> None:
    budget, clock = _budget()
    clock.now, budget.fit_s = now, 20.0
    assert budget.final_epochs(20, 10.0) == epochs


def test_a_used_up_budget_allows_only_a_short_last_fit() -> None:
    budget, clock = _budget()
    clock.now, budget.fit_s = 1000.0, 90.0
    assert budget.fits_again(), "within the tenth by which it may be late"
    clock.now = 1020.0
    assert not budget.fits_again()
    budget.fit_s = 10.0
    assert budget.fits_again()


def test_used_time_is_printed_by_part_largest_first() -> None:
    budget, clock = _budget(240.0)
    for part, seconds in (
        ("prepare", 10.0),
        ("search", 60.0),
        ("training", 150.0),
        ("search", 20.0),
    ):
        clock.now += 5.0 if part == "prepare" else 0.0
        budget.turn_to(part)
        clock.now += seconds
    assert (
        budget.summary()
        == "budget, used 4.1 min (102 %): training 2.5 min, search 80 s, prepare 10 s, start 5 s"
    )


def test_progress_lines_show_the_budget_after_the_elapsed_time() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    progress("one")
    progress.budget = "4m"
    progress("two")
    one, two = stream.getvalue().splitlines()
    assert "/" not in one and two.split()[0].endswith("/4m")


# ------------------------------------------------------------------------------------------- search


def _plan(tmp_path: Path, seconds: float = 100.0) -> tuple[Portfolio, Clock]:
    configs = [configured(CONFIG, PLAIN, setting) for setting in portfolio_of(PLAIN)]
    plan = Portfolio(
        configs,
        [setting.name for setting in portfolio_of(PLAIN)],
        Ledger(tmp_path / "l.jsonl"),
        0.0,
    )
    clock = Clock()
    plan.clock, plan.begun, plan.deadline = clock, 0.0, seconds
    return plan, clock


def test_first_trial_leaves_time_for_a_second_one(tmp_path: Path) -> None:
    plan, clock = _plan(tmp_path)
    first = plan.next(())
    assert isinstance(first, Trial) and plan.until(first, 1) == 60.0
    assert plan.until(first, 2) == 100.0, "not if other trials run at the same time"
    plan.ledger.start(first)
    plan.ledger.end(first, "finished", value=0.1)
    clock.now = 61.0
    second = plan.next(())
    assert isinstance(second, Trial) and second.number == 1 and plan.until(second, 1) == 100.0
    plan.ledger.start(second)
    clock.now = 101.0
    plan.ledger.end(second, "finished", value=0.1)
    assert plan.next(()) is None


def _report(plan: Portfolio, number: int, values: dict[int, float], cut: bool) -> None:
    trial = Trial(number, 0, 1, {})
    plan.ledger.start(trial)
    trial, best = plan.ledger.trials[(number, 0)], 0.0
    for epoch, value in values.items():
        best = max(best, value)
        share = {"share": 1.0} if cut and epoch == max(values) else {}
        history = [{"epoch": epoch, "seconds": 1.0, **share}]
        plan.ledger.epoch(trial, {"epoch": epoch, "value": value, "best": best, "history": history})
    plan.ledger.end(trial, "finished", value=best)
    assert is_cut(trial) == cut


def test_cut_trials_are_compared_after_the_same_number_of_epochs(tmp_path: Path) -> None:
    plan, _ = _plan(tmp_path)
    _report(plan, 0, {1: 0.10, 2: 0.20, 3: 0.30}, cut=True)
    _report(plan, 1, {1: 0.12, 2: 0.25}, cut=True)
    best = plan.best_trial()
    assert best is not None and best.number == 1


def test_small_lead_of_a_cut_trial_does_not_beat_a_much_better_epoch(tmp_path: Path) -> None:
    plan, _ = _plan(tmp_path)
    _report(plan, 0, {1: 0.10, 2: 0.20, 3: 0.45}, cut=True)
    _report(plan, 1, {1: 0.12, 2: 0.22}, cut=True)
    best = plan.best_trial()
    assert best is not None and best.number == 0


def test_cut_trial_with_few_epochs_is_compared_by_its_best_epoch(tmp_path: Path) -> None:
    plan, _ = _plan(tmp_path)
    _report(plan, 0, {1: 0.10, 3: 0.20, 8: 0.35}, cut=True)
    _report(plan, 1, {1: 0.12, 3: 0.25}, cut=True)
    best = plan.best_trial()
    assert best is not None and best.number == 0, "three epochs of eight say little"


def test_only_trainings_that_surely_fit_reserve_time_for_all_events() -> None:
    budget, clock = _budget()
    clock.now = 200.0
    costs = {
        "trained": Costs(200.0, 100.0),
        "apart_1": Costs(150.0, 50.0),
        "apart_2": Costs(90.0, 40.0),
    }
    _expect(budget, costs, 5.0, trains_final=True)
    assert budget.expected["apart_1, final"] == 50.0, "500 of the 520 seconds before the reserve"
    assert budget.expected["apart_2, final"] == 0.0 and budget.expected["apart_2"] == 90.0
    assert budget.expected["final"] == 150.0 and budget.start_s == 5.0


def test_finished_trial_is_compared_by_its_best_epoch(tmp_path: Path) -> None:
    plan, _ = _plan(tmp_path)
    _report(plan, 0, {1: 0.10, 2: 0.20, 3: 0.30}, cut=False)
    _report(plan, 1, {1: 0.12, 2: 0.25}, cut=True)
    best = plan.best_trial()
    assert best is not None and best.number == 0


@pytest.fixture
def after_two(tmp_path: Path) -> tuple[RunFolder, Config]:
    """The folder of a trial that was stopped after two of six epochs, and its configuration."""
    dataset, config = cycles(tmp_path / "data"), settings(epochs=6, refit=True)
    folder = RunFolder(tmp_path / "run", Progress(None))
    (folder.root / "trials" / "000").mkdir(parents=True)
    fit(
        config,
        dataset,
        Validator.of(config.train, config.evaluate),
        TrainContext(report=_kept(folder.root / "trials" / "000", 2)),
    )
    return folder, config


def _kept(folder: Path, last: int) -> Callable[[Report, Path | None], None]:
    def report(values: Report, checkpoint: Path | None) -> None:
        if values["phase"] == "select" and values["epoch"] == last and checkpoint is not None:
            checkpoint.rename(folder / "checkpoint-1")

    return report


def _trial_of_two(seconds: float, **changes: Any) -> Trial:
    epochs = {epoch: {"value": 0.1 * epoch, "best": 0.1 * epoch} for epoch in (1, 2)}
    history = {epoch: {"epoch": epoch, "seconds": seconds} for epoch in (1, 2)}
    return Trial(
        0, 0, 1, {}, **{"state": "stopped", "epochs": epochs, "history": history, **changes}
    )


@pytest.mark.parametrize(
    ("seconds", "state", "done", "epochs"),
    [
        (1.0, "stopped", 2, 6),  # time for everything
        # too late for another training, but the trial had ended by itself
        (60.0, "finished", 2, 6),
        (30.0, "stopped", 2, 6),  # from scratch, only 1 epoch and its refit would fit
        # continues only to epoch 5; from scratch, 4 epochs end at a low learning rate
        (7.0, "stopped", 0, 4),
        # nothing fits from scratch: the trial's weights are better than none
        (90.0, "stopped", 2, 6),
    ],
)
def test_chosen_training_continues_its_trial_unless_a_short_schedule_is_better(
    after_two: tuple[RunFolder, Config], seconds: float, state: str, done: int, epochs: int
) -> None:
    folder, config = after_two
    plan: Any = SimpleNamespace(configs=[config])
    checkpoint = last_checkpoint(folder.root / "trials" / "000")
    assert checkpoint is not None
    trial, saved = _trial_of_two(seconds, state=state), load_progress(checkpoint).epoch
    found = continued(config, plan, trial, saved, time.monotonic() + 100.0)
    assert found[0] is not None and (found[1], found[0].train.epochs) == (done, epochs)


def test_weights_of_a_trial_are_used_as_they_are_if_only_few_epochs_fit(
    after_two: tuple[RunFolder, Config],
) -> None:
    _, config = after_two
    many = config.model_copy(update={"train": config.train.model_copy(update={"epochs": 80})})
    plan: Any = SimpleNamespace(configs=[many])
    found, done = continued(many, plan, _trial_of_two(30.0), 2, time.monotonic() + 200.0)
    assert found is not None and (found.train.epochs, done, found.train.refit) == (2, 2, False)
    found, done = continued(many, plan, _trial_of_two(5.0), 2, time.monotonic() + 200.0)
    assert found is not None and found.train.epochs > 8 and found.train.refit


def test_search_ends_if_the_first_setting_shows_that_none_can_be_trained(tmp_path: Path) -> None:
    for seconds, is_tried in ((30.0, True), (400.0, False)):
        plan, clock = _plan(tmp_path / str(seconds))
        train = CONFIG.train.model_copy(update={"epochs": 80, "refit": True})
        end = time.monotonic() + 1000.0
        plan._is_hopeless = partial(is_hopeless, train=train, deadline=end)
        first = plan.next(())
        assert isinstance(first, Trial)
        plan.ledger.start(first)
        history = [{"epoch": 1, "seconds": seconds, "share": 1.0}]
        plan.ledger.epoch(first, {"epoch": 1, "value": 0.1, "best": 0.1, "history": history})
        plan.ledger.end(first, "finished", value=0.1)
        assert (plan.next(()) is not None) == is_tried


def test_trial_without_a_checkpoint_is_trained_again(
    after_two: tuple[RunFolder, Config], tmp_path: Path
) -> None:
    _, config = after_two
    plan: Any = SimpleNamespace(configs=[config])
    assert last_checkpoint(tmp_path / "other") is None
    found = continued(config, plan, _trial_of_two(1.0), 0, time.monotonic() + 100.0)
    assert found[0] is not None and found[1] == 0


def test_only_the_best_four_trials_keep_their_checkpoints(tmp_path: Path) -> None:
    plan, _ = _plan(tmp_path)
    for number, value in enumerate((0.20, 0.10, 0.25, 0.30, 0.15)):
        _report(plan, number, {1: value}, cut=False)
    without = plan.without_checkpoints(plan.ledger.trials[(4, 0)])
    assert [trial.number for trial in without] == [1]


# ----------------------------------------------------------------------------------------- training


@pytest.mark.usefixtures("one_thread")
def test_training_with_a_head_start_equals_the_whole_training(
    after_two: tuple[RunFolder, Config],
) -> None:
    folder, config = after_two
    dataset = PreparedDataset(str(folder.root.parent / "data"))
    whole = fit(config, dataset, Validator.of(config.train, config.evaluate), TrainContext())
    checkpoint = folder.root / "trials" / "000" / "checkpoint-1"
    continued = fit(
        config,
        dataset,
        Validator.of(config.train, config.evaluate),
        TrainContext(resume_from=checkpoint),
    )
    assert continued.best_epoch == whole.best_epoch
    assert all((continued.weights[name] == weight).all() for name, weight in whole.weights.items())


@pytest.mark.usefixtures("one_thread")
def test_head_start_without_time_to_continue_keeps_its_weights(
    after_two: tuple[RunFolder, Config],
) -> None:
    folder, config = after_two
    dataset = PreparedDataset(str(folder.root.parent / "data"))
    checkpoint = folder.root / "trials" / "000" / "checkpoint-1"
    context = TrainContext(resume_from=checkpoint, deadline=Deadline(-1.0))
    found = fit(config, dataset, Validator.of(config.train, config.evaluate), context)
    assert [report["epoch"] for report in found.history] == [1, 2] and UNREFITTED in found.choices
    best = load_checkpoint(checkpoint, None)[1]
    assert all((found.weights[name] == weight).all() for name, weight in best.items())


def _timed(
    clock: Clock, seconds: float, until: float
) -> tuple[TrainContext, list[Report], list[str]]:
    """A context in which every epoch takes this many seconds."""
    reports: list[Report] = []
    notes: list[str] = []

    def take(report: Report, _: Path | None) -> None:
        reports.append(report)
        clock.now += seconds

    return (
        TrainContext(report=take, note=notes.append, deadline=Deadline(until, clock)),
        reports,
        notes,
    )


@pytest.mark.usefixtures("one_thread")
def test_training_that_runs_out_of_time_ends_with_a_validation(tmp_path: Path) -> None:
    dataset, config, clock = cycles(tmp_path), settings(epochs=6, evaluate_every=3), Clock()
    context, reports, notes = _timed(clock, 10.0, until=15.0)
    result = fit(config, dataset, Validator.of(config.train, config.evaluate), context)
    assert [report["epoch"] for report in reports] == [1, 2, 3] and "share" in reports[-1]
    assert "ndcg@5" in reports[-1] and result.best_epoch in (0, 1, 2, 3)
    assert any("stopped at epoch 3 of 6" in note for note in notes)


@pytest.mark.usefixtures("one_thread")
def test_training_that_runs_out_of_time_in_its_first_epoch_still_gives_a_validated_model(
    tmp_path: Path,
) -> None:
    dataset, config, clock = cycles(tmp_path), settings(epochs=6, evaluate_every=3), Clock()
    context, reports, _ = _timed(clock, 0.0, until=-1.0)
    result = fit(config, dataset, Validator.of(config.train, config.evaluate), context)
    (only,) = reports
    assert 0 < only["share"] < 1 and "ndcg@5" in only and result.best_epoch == 1


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("seconds", [10.0, 0.0])
def test_refit_without_enough_time_is_left_out(tmp_path: Path, seconds: float) -> None:
    """The time is short before the refit, or runs out during it."""
    dataset, config, clock = cycles(tmp_path), settings(epochs=2, refit=True), Clock()
    context, reports, notes = _timed(clock, seconds, until=15.0)
    if not seconds:  # the pace allowed a refit, and then the machine stopped
        context = replace(context, report=_stops_in("refit", reports, clock))
    result = fit(config, dataset, Validator.of(config.train, config.evaluate), context)
    assert result.refit and UNREFITTED in result.choices
    assert all(report["phase"] == "select" for report in result.history)
    alone = fit(
        settings(epochs=2), dataset, Validator.of(config.train, config.evaluate), TrainContext()
    )
    for weights in (result.weights, result.selected or {}):
        assert all((weights[name] == weight).all() for name, weight in alone.weights.items()), (
            "the selected weights"
        )
    assert int(result.frozen.popularity_N.sum()) > int(alone.frozen.popularity_N.sum()), (
        "validation events count too"
    )
    assert any(
        "the model keeps the weights that were chosen on validation" in note for note in notes
    )


def _stops_in(
    phase: str, reports: list[Report], clock: Clock
) -> Callable[[Report, Path | None], None]:
    def take(report: Report, _: Path | None) -> None:
        reports.append(report)
        clock.now += 1000.0 * (report["phase"] == phase)

    return take


@pytest.mark.usefixtures("one_thread")
def test_deadline_far_away_changes_nothing(tmp_path: Path) -> None:
    dataset, config = cycles(tmp_path), settings(epochs=2, refit=True)
    plain = fit(config, dataset, Validator.of(config.train, config.evaluate), TrainContext())
    timed = fit(
        config,
        dataset,
        Validator.of(config.train, config.evaluate),
        TrainContext(deadline=Deadline(1e12)),
    )
    assert plain.refit and timed.refit
    assert all((plain.weights[name] == weight).all() for name, weight in timed.weights.items())


@pytest.mark.usefixtures("one_thread")
def test_final_training_cut_by_the_deadline_is_not_whole(tmp_path: Path) -> None:
    dataset, config, clock = cycles(tmp_path), settings(epochs=3), Clock()
    trained = fit(config, dataset, Validator.of(config.train, config.evaluate), TrainContext())
    final = replace(Final.of_trained(trained), epochs=3, of=3)
    assert is_whole(fit_final(config, dataset, TrainContext(), final), final)
    context, reports, _ = _timed(clock, 0.0, until=5.0)
    context = replace(context, report=_stops_in("final", reports, clock))
    assert not is_whole(fit_final(config, dataset, context, final), final)


# ------------------------------------------------------------------------------------------ members


def _members(tmp_path: Path) -> tuple[Any, Any]:
    rows = [
        [((user + day) % 9, 0, (day + 1) * 86_400, part) for day, part in enumerate(_PARTS)]
        for user in range(30)
    ]
    dataset = write_dataset(tmp_path, rows, 9)
    return dataset, configured(CONFIG, Traits.of(dataset, CONFIG), None)


_PARTS = (*[Split.TRAIN] * 5, Split.VALID, Split.TEST)


def _in_time(
    dataset: Any, config: Any, until: float, seconds: float = 1.0
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """The members' constants if every ranking takes this many seconds."""
    clock, validator, notes = Clock(), Validator.of(config.train, config.evaluate), list[str]()

    def validate(model: Any, queries: Any) -> Any:
        clock.now += seconds
        return validator(model, queries)

    context = TrainContext(note=notes.append, deadline=Deadline(until, clock))
    return *choose_in_time(config, dataset, validate, context), notes


def test_enough_time_gives_the_constants_of_no_deadline(tmp_path: Path) -> None:
    dataset, config = _members(tmp_path)
    found, left_out, notes = _in_time(dataset, config, until=1e9)
    assert not left_out and not notes
    assert found == choose_values(
        config, dataset, Validator.of(config.train, config.evaluate), TrainContext()
    )


def test_expensive_members_are_left_out_by_name_and_cheap_ones_stay(tmp_path: Path) -> None:
    dataset, config = _members(tmp_path)
    found, left_out, _ = _in_time(dataset, config, until=12.0)
    assert {"als", "item_cf"} <= set(left_out) and "no time is left to fit it" in left_out["als"]
    assert "popularity" in found and "popularity" not in left_out


def test_choice_for_one_member_takes_no_time_from_the_fit_of_another(tmp_path: Path) -> None:
    dataset, config = _members(tmp_path)
    found, left_out, notes = _in_time(dataset, config, until=30.0)
    assert not left_out and {"als", "item_cf", "item_knn"} <= set(found)
    assert any("choose item_cf." in note for note in notes), "some choices had no time"


def test_first_key_of_every_member_is_chosen_before_the_second_key_of_another(
    tmp_path: Path,
) -> None:
    dataset, config = _members(tmp_path)
    found, _, notes = _in_time(dataset, config, until=45.0)
    assert notes, "some choices had no time"
    for name in found:
        [first, *_] = getattr(config.model.granularities, name).open_keys
        assert first in found[name]["candidates"], name


def test_keys_without_time_for_a_choice_keep_their_first_value(tmp_path: Path) -> None:
    dataset, config = _members(tmp_path)
    found, _, notes = _in_time(dataset, config, until=20.0)
    kept = [name for name in found if any(f"choose {name}." in note for note in notes)]
    assert kept
    for name in kept:
        section = getattr(config.model.granularities, name)
        assert set(found[name]["chosen"]) == set(section.open_keys)
        untried = set(section.open_keys) - set(found[name]["candidates"])
        assert untried and all(
            found[name]["chosen"][key] == getattr(section, key)[0] for key in untried
        )


def test_model_without_left_out_members_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, config = _members(tmp_path)
    monkeypatch.setattr(
        "pipelines.steps.stacking.choose_in_time",
        lambda *_: (
            {},
            {"als": "no time is left to fit it", "item_cf": "no time is left to fit it"},
        ),
    )
    stream = io.StringIO()
    trained = fit(
        trained_part(config), dataset, Validator.of(config.train, config.evaluate), TrainContext()
    )
    result = stacked(config, dataset, trained, Progress(stream))
    printed = stream.getvalue()
    assert "member als is left out: no time is left to fit it" in printed
    dropped = [line for line in printed.splitlines() if "they add nothing" in line]
    assert not any("als" in line for line in dropped), "it was left out before the weights"
    assert set(result.choices[LEFT_OUT]) == {"als", "item_cf"}
    assert {"als", "item_cf"} <= set(result.choices[STACK]["dropped"])
    assert (
        "als" not in result.frozen.states
        and result.choices[STACK]["members"]["als"]["alone"] is None
    )
    assert bool(result.frozen.scores(dataset.histories().queries(Split.TEST)).isfinite().all())


# --------------------------------------------------------------------------------------- whole runs


def _events(folder: Path) -> Path:
    lines = ["user_id,item_id,timestamp"]
    for user in range(60):
        lines += [
            f"u{user},i{(user + step) % 20},{1_600_000_000 + 7000 * (17 * user + 40 * step)}"
            for step in range(8)
        ]
    path = folder / "events.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def _run_with_budget(folder: Path, budget: str) -> int:
    """`recsys init` and `recsys run` in a folder, with paths relative to it."""
    assert main(["init", str(_events(folder)), "--out", "mine.yaml"]) == 0
    options = {
        "run.dir": "run",
        "budget": budget,
        "train.epochs": "3",
        "train.threads": "1",
        "tracking.enabled": "false",
        "evaluate.baselines": "[popularity]",
        "evaluate.bootstrap": "100",
        "data.num_shards": "1",
    }
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    return main(["run", "--config", "mine.yaml", *words])


def test_short_budget_compares_two_settings_and_continues_the_better_one(
    tmp_path: Path,
    ray_local: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with training_here() as on_workers:
        code = _run_with_budget(tmp_path, "9m")
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert on_workers == [], "workers take longer to start than a short budget has"
    assert "trial 000" in printed and "trial 001" in printed
    assert "3 epochs, continued after epoch 3" in printed, "the training does not repeat its trial"
    assert not list(Path("run/trials").glob("*/checkpoint-*")), "no checkpoint is left over"
    assert "budget      9m, used " in printed.splitlines()[-1] and "/9m  train" in printed


@pytest.mark.slow
def test_long_budget_continues_its_trials_on_workers_of_ray_train(
    tmp_path: Path,
    ray_local: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _run_with_budget(tmp_path, "12m") == 0
    printed = capsys.readouterr().out
    chosen = printed.partition("continued after epoch 3")[2]
    select, refit = (
        [line for line in chosen.splitlines() if " train  " in line and mark in line]
        for mark in ("epoch ", "(refit)")
    )
    assert refit and select[0] in refit, "the first epoch after the search is of the refit"
    assert "trained separately as further members" in printed
    assert not list(Path("run/trials").glob("*/checkpoint-*"))


def test_separate_model_without_time_is_left_out_by_name(tmp_path: Path) -> None:
    config = with_separate_model(
        configured(CONFIG, PLAIN, portfolio_of(PLAIN)[0]), portfolio_of(PLAIN)[1], 0
    )
    budget, clock = _budget()
    budget.expected = {"trained": 100.0, "apart_1": 400.0, "apart_1, final": 200.0, "final": 300.0}
    assert "apart_1" in config.model.granularities.enabled()
    clock.now = 100.0
    assert not budget.holds("apart_1"), "900 minus a reserve of 315 minus 300"
    budget.expected["final"] = 100.0
    assert budget.holds("apart_1") and not budget.holds("apart_1", slower=2.0)


def test_pace_of_a_trial_cut_in_its_first_epoch_is_scaled_to_a_whole_epoch() -> None:
    cut = replace(THREE_SECONDS_AN_EPOCH, history={1: {"seconds": 2.0, "share": 0.25}})
    assert pace_of(cut) == 8.0
