"""A budget is kept: what is behind is foreseen by what was measured, and what does not fit is cut or left out by name.

Nothing here waits: clocks are moved by hand, by what the work does.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from pipelines.plumbing.budget import Budget
from pipelines.plumbing.progress import Progress
from pipelines.stacking import stacked
from recsys.auto.portfolio import configured, with_separate_model
from recsys.auto.portfolio import settings as portfolio_of
from recsys.auto.traits import Traits
from recsys.data.histories import Split
from recsys.evaluation.validation import Validator
from recsys.pace import Deadline
from recsys.training.constants import LEFT_OUT, choose_in_time, choose_values
from recsys.training.context import Report, TrainContext
from recsys.training.final import Final, fit_final, is_whole
from recsys.training.loop import UNREFITTED
from recsys.training.members import trained_part
from recsys.training.phases import fit
from recsys.training.selected import STACK
from tests.auto.test_auto import CONFIG, PLAIN, THREE_SECONDS_AN_EPOCH
from tests.handmade import write_dataset
from tests.training.test_training import cycles, settings
from tests.training_here import training_here
from tune.auto import Portfolio, _is_cut
from tune.ledger import Ledger, Trial


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# ------------------------------------------------------------------------------------------------------------ planner


def _budget(seconds: float = 1000.0) -> tuple[Budget, Clock]:
    clock = Clock()
    return Budget("budget", seconds, 0.0, clock), clock


def test_the_training_leaves_time_for_what_is_behind_it() -> None:
    budget, clock = _budget()
    clock.now, budget.expected, budget.start_s = 200.0, {"trained": 300.0, "final": 100.0}, 20.0
    assert budget.training_s() == pytest.approx(800 - 0.35 * 800 - 100 - 20)
    assert budget.holds("trained") and not budget.holds("trained", slower=1.5)
    clock.now = 1200.0
    assert budget.training_s() == pytest.approx(50.0), "as little as gives a model at all"
    assert budget.training_s("apart_1") == 0.0


def test_members_take_half_of_the_time_before_the_final_training_and_some_in_any_case() -> None:
    budget, clock = _budget()
    clock.now, budget.expected = 500.0, {"final": 100.0}
    assert budget.members_s() == pytest.approx(200.0)
    clock.now = 990.0
    assert budget.members_s() == pytest.approx(150.0)


@pytest.mark.parametrize(("now", "epochs"), [(500.0, None), (800.0, None), (1000.0, 4), (1060.0, 2), (1200.0, 0)])
def test_the_training_on_all_events_is_whole_goes_on_or_is_left_out(now: float, epochs: int | None) -> None:
    budget, clock = _budget()
    clock.now, budget.fit_s = now, 20.0
    assert budget.final_epochs(20, 10.0) == epochs


def test_what_the_time_was_spent_on_is_said_with_the_largest_part_first() -> None:
    budget, clock = _budget(240.0)
    for part, seconds in (("prepare", 10.0), ("search", 60.0), ("training", 150.0), ("search", 20.0)):
        clock.now += 5.0 if part == "prepare" else 0.0
        budget.turn_to(part)
        clock.now += seconds
    assert budget.said() == "budget, used 4.1 min (102 %): training 2.5 min, search 80 s, prepare 10 s, start 5 s"


def test_progress_lines_show_the_budget_behind_the_elapsed_time() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    progress("one")
    progress.budget = "4m"
    progress("two")
    one, two = stream.getvalue().splitlines()
    assert "/" not in one and two.split()[0].endswith("/4m")


# ------------------------------------------------------------------------------------------------------------- search


def _plan(tmp_path: Path, seconds: float = 100.0) -> tuple[Portfolio, Clock]:
    configs = [configured(CONFIG, PLAIN, setting) for setting in portfolio_of(PLAIN)]
    plan = Portfolio(configs, [setting.name for setting in portfolio_of(PLAIN)], Ledger(tmp_path / "l.jsonl"), 0.0)
    clock = Clock()
    plan.clock, plan.begun, plan.deadline = clock, 0.0, seconds
    return plan, clock


def test_the_first_trial_ends_early_enough_for_a_second_one(tmp_path: Path) -> None:
    plan, clock = _plan(tmp_path)
    first = plan.next(())
    assert isinstance(first, Trial) and plan.until(first, 1) == 60.0
    assert plan.until(first, 2) == 100.0, "where others run beside it, it need not"
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
    assert _is_cut(trial) == cut


def test_trials_that_were_cut_are_compared_after_as_many_epochs(tmp_path: Path) -> None:
    plan, _ = _plan(tmp_path)
    _report(plan, 0, {1: 0.10, 2: 0.20, 3: 0.30}, cut=True)
    _report(plan, 1, {1: 0.12, 2: 0.25}, cut=True)
    best = plan.best_trial()
    assert best is not None and best.number == 1


def test_a_trial_that_came_to_its_end_is_compared_by_its_best(tmp_path: Path) -> None:
    plan, _ = _plan(tmp_path)
    _report(plan, 0, {1: 0.10, 2: 0.20, 3: 0.30}, cut=False)
    _report(plan, 1, {1: 0.12, 2: 0.25}, cut=True)
    best = plan.best_trial()
    assert best is not None and best.number == 0


# ----------------------------------------------------------------------------------------------------------- training


def _timed(clock: Clock, seconds: float, until: float) -> tuple[TrainContext, list[Report], list[str]]:
    """A context in which every epoch moves the clock."""
    reports: list[Report] = []
    notes: list[str] = []

    def take(report: Report, _: Path | None) -> None:
        reports.append(report)
        clock.now += seconds

    return TrainContext(report=take, note=notes.append, deadline=Deadline(until, clock)), reports, notes


@pytest.mark.usefixtures("one_thread")
def test_a_training_ends_with_a_validation_where_its_time_is_over(tmp_path: Path) -> None:
    dataset, config, clock = cycles(tmp_path), settings(epochs=6, evaluate_every=3), Clock()
    context, reports, notes = _timed(clock, 10.0, until=15.0)
    result = fit(config, dataset, Validator.of(config), context)
    assert [report["epoch"] for report in reports] == [1, 2, 3] and "share" in reports[-1]
    assert "ndcg@5" in reports[-1] and result.best_epoch in (0, 1, 2, 3)
    assert any("stopped at epoch 3 of 6" in note for note in notes)


@pytest.mark.usefixtures("one_thread")
def test_a_training_whose_time_is_over_in_its_first_epoch_still_gives_a_validated_model(tmp_path: Path) -> None:
    dataset, config, clock = cycles(tmp_path), settings(epochs=6, evaluate_every=3), Clock()
    context, reports, _ = _timed(clock, 0.0, until=-1.0)
    result = fit(config, dataset, Validator.of(config), context)
    (only,) = reports
    assert 0 < only["share"] < 1 and "ndcg@5" in only and result.best_epoch == 1


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("seconds", [10.0, 0.0])
def test_the_refit_is_left_out_where_it_would_not_end_in_time(tmp_path: Path, seconds: float) -> None:
    """Before it begins, and in its midst."""
    dataset, config, clock = cycles(tmp_path), settings(epochs=2, refit=True), Clock()
    context, reports, notes = _timed(clock, seconds, until=15.0)
    if not seconds:  # the pace promised a refit, and then the machine stood still
        context = replace(context, report=_standing_still_in("refit", reports, clock))
    result = fit(config, dataset, Validator.of(config), context)
    assert result.refit and UNREFITTED in result.choices
    assert all(report["phase"] == "select" for report in result.history)
    alone = fit(settings(epochs=2), dataset, Validator.of(config), TrainContext())
    for weights in (result.weights, result.selected or {}):
        assert all((weights[name] == weight).all() for name, weight in alone.weights.items()), "the selected ones"
    assert int(result.frozen.popularity_N.sum()) > int(alone.frozen.popularity_N.sum()), "of validation events, too"
    assert any("no time is left to train with the validation events" in note for note in notes)


def _standing_still_in(phase: str, reports: list[Report], clock: Clock) -> Callable[[Report, Path | None], None]:
    def take(report: Report, _: Path | None) -> None:
        reports.append(report)
        clock.now += 1000.0 * (report["phase"] == phase)

    return take


@pytest.mark.usefixtures("one_thread")
def test_a_training_without_a_deadline_is_as_it_was(tmp_path: Path) -> None:
    dataset, config = cycles(tmp_path), settings(epochs=2, refit=True)
    plain = fit(config, dataset, Validator.of(config), TrainContext())
    timed = fit(config, dataset, Validator.of(config), TrainContext(deadline=Deadline(1e12)))
    assert plain.refit and timed.refit
    assert all((plain.weights[name] == weight).all() for name, weight in timed.weights.items())


@pytest.mark.usefixtures("one_thread")
def test_a_final_training_that_does_not_end_in_time_says_so(tmp_path: Path) -> None:
    dataset, config, clock = cycles(tmp_path), settings(epochs=3), Clock()
    trained = fit(config, dataset, Validator.of(config), TrainContext())
    final = replace(Final.of_trained(trained), epochs=3, of=3)
    assert is_whole(fit_final(config, dataset, TrainContext(), final), final)
    context, reports, _ = _timed(clock, 0.0, until=5.0)
    context = replace(context, report=_standing_still_in("final", reports, clock))
    assert not is_whole(fit_final(config, dataset, context, final), final)


# ------------------------------------------------------------------------------------------------------------ members


def _members(tmp_path: Path) -> tuple[Any, Any]:
    rows = [[((user + day) % 9, 0, (day + 1) * 86_400, part) for day, part in enumerate(_PARTS)] for user in range(30)]
    dataset = write_dataset(tmp_path, rows, 9)
    return dataset, configured(CONFIG, Traits.of(dataset, CONFIG), None)


_PARTS = (*[Split.TRAIN] * 5, Split.VALID, Split.TEST)


def _in_time(
    dataset: Any, config: Any, until: float, seconds: float = 1.0
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """The members' constants where every ranking moves the clock."""
    clock, validator, notes = Clock(), Validator.of(config), list[str]()

    def validate(model: Any, queries: Any) -> Any:
        clock.now += seconds
        return validator(model, queries)

    context = TrainContext(note=notes.append, deadline=Deadline(until, clock))
    return *choose_in_time(config, dataset, validate, context), notes


def test_with_time_enough_the_constants_are_those_without_a_deadline(tmp_path: Path) -> None:
    dataset, config = _members(tmp_path)
    found, left_out, notes = _in_time(dataset, config, until=1e9)
    assert not left_out and not notes
    assert found == choose_values(config, dataset, Validator.of(config), TrainContext())


def test_dear_members_are_left_out_by_name_and_cheap_ones_stay(tmp_path: Path) -> None:
    dataset, config = _members(tmp_path)
    found, left_out, _ = _in_time(dataset, config, until=12.0)
    assert {"als", "item_cf"} <= set(left_out) and "no time is left to fit it" in left_out["als"]
    assert "popularity" in found and "popularity" not in left_out


def test_keys_that_there_is_no_time_for_keep_their_first_value(tmp_path: Path) -> None:
    dataset, config = _members(tmp_path)
    found, _, notes = _in_time(dataset, config, until=20.0)
    kept = [name for name in found if any(f"choose {name}." in note for note in notes)]
    assert kept
    for name in kept:
        section = getattr(config.model.granularities, name)
        assert set(found[name]["chosen"]) == set(section.open_keys)
        untried = set(section.open_keys) - set(found[name]["candidates"])
        assert untried and all(found[name]["chosen"][key] == getattr(section, key)[0] for key in untried)


def test_a_model_without_the_members_that_were_left_out_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, config = _members(tmp_path)
    monkeypatch.setattr(
        "pipelines.stacking.choose_in_time",
        lambda *_: ({}, {"als": "no time is left to fit it", "item_cf": "no time is left to fit it"}),
    )
    stream = io.StringIO()
    trained = fit(trained_part(config), dataset, Validator.of(config), TrainContext())
    result = stacked(config, dataset, trained, Progress(stream))
    assert "member als is left out: no time is left to fit it" in stream.getvalue()
    assert set(result.choices[LEFT_OUT]) == {"als", "item_cf"}
    assert {"als", "item_cf"} <= set(result.choices[STACK]["dropped"])
    assert "als" not in result.frozen.states and result.choices[STACK]["members"]["als"]["alone"] is None
    assert bool(result.frozen.scores(dataset.histories().queries(Split.TEST)).isfinite().all())


# ---------------------------------------------------------------------------------------------------------- whole runs


def _events(folder: Path) -> Path:
    lines = ["user_id,item_id,timestamp"]
    for user in range(60):
        lines += [
            f"u{user},i{(user + step) % 20},{1_600_000_000 + 7000 * (17 * user + 40 * step)}" for step in range(8)
        ]
    path = folder / "events.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_short_budget_compares_two_settings_and_says_what_it_was_spent_on(
    tmp_path: Path, ray_local: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.yaml"
    assert main(["init", str(_events(tmp_path)), "--out", str(out)]) == 0
    quick = [
        *("--train.epochs", "3", "--train.threads", "1", "--tracking.enabled", "false"),
        *("--evaluate.baselines", "[popularity]", "--evaluate.bootstrap", "100", "--data.num_shards", "1"),
    ]
    with training_here() as on_workers:
        code = main(["run", "--config", str(out), "--run.dir", str(tmp_path / "run"), "--budget", "9m", *quick])
    said = capsys.readouterr().out
    assert code == 0, said
    assert on_workers == [], "workers take longer to start than a short budget has"
    assert "trial 000" in said and "trial 001" in said
    assert "budget      9m, used " in said.splitlines()[-1] and "/9m  train" in said


def test_a_model_apart_that_the_time_does_not_hold_is_left_out_by_name(tmp_path: Path) -> None:
    config = with_separate_model(configured(CONFIG, PLAIN, portfolio_of(PLAIN)[0]), portfolio_of(PLAIN)[1], 0)
    budget, clock = _budget()
    budget.expected = {"trained": 100.0, "apart_1": 400.0, "apart_1, final": 200.0, "final": 300.0}
    assert "apart_1" in config.model.granularities.enabled()
    clock.now = 100.0
    assert not budget.holds("apart_1"), "900 less a reserve of 315 less 300"
    budget.expected["final"] = 100.0
    assert budget.holds("apart_1") and not budget.holds("apart_1", slower=2.0)


def test_the_pace_of_a_trial_that_was_cut_in_its_first_epoch_is_that_of_a_whole_one() -> None:
    from tune.auto import _seconds_an_epoch

    cut = replace(THREE_SECONDS_AN_EPOCH, history={1: {"seconds": 2.0, "share": 0.25}})
    assert _seconds_an_epoch(cut) == 8.0
