"""`train.final`: the registered model is trained on all events; the evaluated model has not seen
test events.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import mlflow
import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml

from pipelines.cli import main
from pipelines.plumbing.budget import Budget
from recsys.bundle.description import FORMAT_VERSION, MEASURED, WITH_MEASURED
from recsys.bundle.evaluated_model import has_measured, measured
from recsys.bundle.writing import Measured, write_description
from recsys.config import Config, build_config
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.errors import ArtifactError, DataError, TrainingError
from recsys.evaluation.validation import Validator
from recsys.registry.parent import open_parent, write_refitted
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.training.checkpoint import TrainResult
from recsys.training.context import Report, TrainContext
from recsys.training.final import Final, _chooses, assemble_final, fit_final
from recsys.training.members import trained_only
from recsys.training.phases import fit
from recsys.training.resume import training_digest
from tests.handmade import Event, leave_last, small_model, small_world, write_dataset
from tests.training_here import training_here

Captured = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("one_thread")

# ------------------------------------------------------------------------------------- the training


def world(folder: Path) -> PreparedDataset:
    """Users on a circle of 16 items; their newest event is on one of four items that no user had
    before.
    """
    histories: list[list[Event]] = [
        leave_last(*[(user + step) % 16 for step in range(5 + user % 3)], 16 + user % 4)
        for user in range(32)
    ]
    clubs = {"club": pa.array([f"c{user % 3}" for user in range(32)])}
    return write_dataset(
        folder,
        histories,
        20,
        text_width=6,
        friends=[(u, u + 1) for u in range(0, 30, 2)],
        user_columns=clubs,
    )


def settings(
    names: tuple[str, ...] = ("evolution", "collaborative", "item_cf"), **train: Any
) -> Config:
    granularities: dict[str, Any] = {name: {"enabled": True} for name in names}
    if "stratum" in granularities:
        granularities["stratum"]["num_strata"] = [2]
    return build_config(
        {
            "model": {"width": 8, "max_history": 8, "granularities": granularities},
            "train": {
                "epochs": 4,
                "batch_size": 8,
                "lr": 0.02,
                "metric": "ndcg@5",
                "warmup": 0.0,
                **train,
            },
            "evaluate": {"ks": [5]},
        }
    )


def measured_of(config: Config, dataset: PreparedDataset) -> TrainResult:
    return fit(config, dataset, Validator.of(config.train, config.evaluate), TrainContext())


def test_training_on_all_events_equals_refit_of_a_later_cut(tmp_path: Path) -> None:
    """The model equals that of a refit on a dataset in which every event is training or
    validation.
    """
    config, dataset = settings(("evolution", "collaborative", "social")), world(tmp_path / "d")
    trained = measured_of(config, dataset)
    final = Final.of_trained(trained)
    found = fit_final(config, dataset, TrainContext(), final)
    assert [row["phase"] for row in found.history] == ["final"] * trained.best_epoch

    earlier = {"TEST": Split.VALID, "VALID": Split.TRAIN, "TRAIN": Split.TRAIN}
    moved = [
        [(item, kind, time, earlier[part.name]) for item, kind, time, part in events]
        for events in ([*h] for h in [leave_last(*_items(dataset, user)) for user in range(32)])
    ]
    later = write_dataset(
        tmp_path / "later", moved, 20, text_width=6, friends=[(u, u + 1) for u in range(0, 30, 2)]
    )
    again = fit(
        config,
        later,
        lambda model, queries: np.arange(len(queries.histories.users_U), dtype=float),
        _constant,
    )
    assert again.refit and again.best_epoch == 1  # a constant metric: the first epoch is the best
    one = fit_final(config, dataset, TrainContext(), replace(final, epochs=1, of=1))
    for name, tensor in again.frozen.tensors().items():
        torch.testing.assert_close(one.frozen.tensors()[name], tensor, rtol=1e-5, atol=1e-6)


_constant = TrainContext()


def _items(dataset: PreparedDataset, user: int) -> list[int]:
    histories = dataset.histories()
    row = int(np.flatnonzero(histories.users_U == user)[0])
    return [int(item) for item in histories.take(np.array([row])).items_E]


def test_final_model_knows_items_that_only_test_has(tmp_path: Path) -> None:
    config, dataset = settings(ratings=False), world(tmp_path / "d")
    trained = measured_of(config, dataset)
    final = Final.of_trained(trained)
    found = fit_final(config, dataset, TrainContext(), final)
    frozen = assemble_final(config, dataset, final, found.weights)
    assert trained.frozen.popularity_N[16:].tolist() == [0] * 4
    assert frozen.popularity_N[16:].tolist() == [8] * 4
    assert float(frozen.popularity_N.sum()) == sum(len(shard.items_E) for shard in dataset.shards())
    for name, tensor in found.frozen.tensors().items():
        torch.testing.assert_close(frozen.tensors()[name], tensor, rtol=1e-5, atol=1e-6)
    weights = [result.weights["model.encoders.fitted_weights"] for result in (trained, found)]
    assert torch.equal(*weights), "the weight of item_cf was chosen on validation and stays"


def test_interrupted_final_training_resumes_to_the_same_values(tmp_path: Path) -> None:
    config, dataset = settings(("evolution", "behaviour")), world(tmp_path / "d")
    final = replace(Final.of_trained(measured_of(config, dataset)), epochs=4, of=4)

    class Lost(Exception):
        pass

    def report(values: Report, checkpoint: Path | None) -> None:
        if checkpoint is not None:
            checkpoint.rename(tmp_path / f"{values['phase']}-{values['epoch']}")
        if values["epoch"] == 2:
            raise Lost

    def save(checkpoint: Path | None) -> None:
        assert checkpoint is not None
        shutil.rmtree(tmp_path / "saved", ignore_errors=True)
        checkpoint.rename(tmp_path / "saved")

    config.train.checkpoint_steps = 1
    whole = fit_final(config, dataset, TrainContext(), final)
    with pytest.raises(Lost):
        fit_final(config, dataset, TrainContext(report=report, save=save), final)
    resumed = fit_final(config, dataset, TrainContext(resume_from=tmp_path / "saved"), final)
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]
    for name, tensor in whole.weights.items():
        assert torch.equal(resumed.weights[name], tensor), name


def test_pruned_granularities_are_trained_around_the_final_model(tmp_path: Path) -> None:
    """The phases are those of the evaluated training: without the pruned granularity, then that one
    alone.
    """
    config, dataset = settings(("evolution", "behaviour")), world(tmp_path / "d")
    trained = measured_of(config, dataset)
    choices = {**trained.choices, "kept": {"behaviour": 0.0, "evolution": 1.0}}
    final = replace(Final.of_trained(trained), choices=choices, epochs=2, of=2)
    found = fit_final(config, dataset, TrainContext(), final)
    assert [row["phase"] for row in found.history] == ["final"] * 2 + ["final_join"] * 2
    assert found.frozen.trained_names == trained.frozen.trained_names
    frozen = assemble_final(config, dataset, final, found.weights)
    for name, tensor in found.frozen.tensors().items():
        torch.testing.assert_close(frozen.tensors()[name], tensor, rtol=1e-5, atol=1e-6)


def test_continued_final_training_starts_at_evaluated_weights(tmp_path: Path) -> None:
    config, dataset = settings(("evolution", "stratum", "profile")), world(tmp_path / "d")
    trained = measured_of(config, dataset)
    final = Final.of_trained(trained, 2, lr_share=1e-12)
    found = fit_final(config, dataset, TrainContext(), final)
    assert len(found.history) == 2
    for name, tensor in trained.weights.items():
        if not name.startswith("model.encoders.granularities.stratum."):  # fitted again
            torch.testing.assert_close(found.weights[name], tensor, rtol=1e-4, atol=1e-5)
    assert final.settings(config).train.epochs == 2 and final.settings(
        config
    ).train.lr == pytest.approx(2e-14)
    assert not Final.of_trained(trained, 0).trains


def test_fewer_epochs_shorten_the_schedule(tmp_path: Path) -> None:
    final = Final(3, 6, {}, {}, ("evolution",))
    assert final.settings(settings(epochs=8)).train.epochs == 4
    assert replace(final, epochs=6).settings(settings(epochs=8)).train.epochs == 8


def test_digest_of_final_training_differs_from_evaluated_training(tmp_path: Path) -> None:
    config, dataset = settings(), world(tmp_path / "d")
    weights = {"model.encoders.fitted_weights": torch.ones(1), "model.x": torch.ones(2)}
    final = Final(3, 3, {}, weights, ("evolution",))
    digests = [
        training_digest(config, dataset, None, one)
        for one in (
            None,
            final,
            replace(final, epochs=2),
            replace(final, choices={"kept": {}}),
            replace(final, weights={**weights, "model.encoders.fitted_weights": torch.zeros(1)}),
            replace(final, continues=True),
            replace(final, continues=True, weights={**weights, "model.x": torch.zeros(2)}),
        )
    ]
    assert len({*digests}) == len(digests)
    fresh = replace(final, weights={**weights, "model.x": torch.zeros(2)})
    assert training_digest(config, dataset, None, fresh) == digests[1], (
        "from scratch, these weights are not read"
    )
    on = config.model_copy(update={"train": config.train.model_copy(update={"final": True})})
    assert training_digest(on, dataset, None) == digests[0], (
        "the evaluated training is the same either way"
    )


def test_final_training_chooses_nothing(tmp_path: Path) -> None:
    dataset = small_world(tmp_path / "d")
    with pytest.raises(TrainingError, match="nothing is chosen"):
        _chooses(small_model(dataset), dataset.histories().queries(Split.VALID))


# --------------------------------------------------------------------------------------- the bundle


def two_models(folder: Path) -> tuple[Path, PreparedDataset]:
    dataset = small_world(folder / "data")
    served, seen = small_model(dataset, through=Split.TEST), small_model(dataset)
    weights = {"model.encoders.x": torch.ones(1)}
    write_bundle(
        folder / "bundle", served, dataset, {"refit": True}, weights, "", Measured(seen, weights)
    )
    return folder / "bundle", dataset


def test_bundle_with_two_models_serves_final_and_evaluates_measured(tmp_path: Path) -> None:
    folder, dataset = two_models(tmp_path)
    bundle = read_bundle(folder)
    assert bundle.info.format_version == WITH_MEASURED and has_measured(bundle.info)
    expected = small_model(dataset).popularity_N
    other = measured(folder, bundle)
    assert torch.equal(other.model.popularity_N, expected) and not torch.equal(
        bundle.model.popularity_N, expected
    )
    assert other.item_ids is bundle.item_ids and other.index is None
    write_bundle(tmp_path / "one", small_model(dataset), dataset, {})
    single = read_bundle(tmp_path / "one")
    assert (
        single.info.format_version == FORMAT_VERSION
        and measured(tmp_path / "one", single) is single
    )


def test_changed_or_missing_measured_model_is_refused(tmp_path: Path) -> None:
    folder, dataset = two_models(tmp_path)
    bundle = read_bundle(folder)
    whole = (folder / MEASURED).read_bytes()
    (folder / MEASURED).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(
        ArtifactError, match=r"measured\.safetensors is not the file that was written"
    ):
        measured(folder, bundle)
    write_description(folder, bundle.info)  # as an attacker would
    (folder / MEASURED).write_bytes(b"nothing")
    write_description(folder, bundle.info)
    with pytest.raises(ArtifactError, match=r"damaged: measured\.safetensors: "):
        measured(folder, read_bundle(folder))
    (folder / MEASURED).unlink()
    with pytest.raises(ArtifactError, match=r"measured\.safetensors is missing"):
        measured(folder, bundle)


def test_new_fusion_weights_reach_both_models(tmp_path: Path) -> None:
    dataset = small_world(tmp_path / "data")
    served, seen = small_model(dataset, through=Split.TEST), small_model(dataset)
    write_bundle(tmp_path / "bundle", served, dataset, {}, None, "", Measured(seen, seen.tensors()))
    parent = open_parent(str(tmp_path / "bundle"), "")
    changed = {
        "fusion.prior_K": torch.full_like(served.encoders.state_dict()["fusion.prior_K"], 0.25)
    }
    names = {
        f"model.encoders.{name}": tensor for name, tensor in seen.encoders.state_dict().items()
    }
    write_bundle(tmp_path / "bundle", served, dataset, {}, names, "", Measured(seen, names))
    parent = open_parent(str(tmp_path / "bundle"), "")
    write_refitted(parent, tmp_path / "next", changed, {}, {})
    after = open_parent(str(tmp_path / "next"), "")
    for model in (after.bundle.model, after.measured()):
        assert torch.equal(model.encoders.state_dict()["fusion.prior_K"], changed["fusion.prior_K"])
    for weights in (after.training(), after.measured_training()):
        assert torch.equal(weights["model.encoders.fusion.prior_K"], changed["fusion.prior_K"])


# ----------------------------------------------------------------------------------- whole commands


def rows(path: Path, events: list[tuple[str, str, int]]) -> None:
    lines = ["user_id,item_id,timestamp"]
    lines += [
        f"{user},{item},2026-01-{1 + day // 24:02d}T{day % 24:02d}:00:00"
        for user, item, day in events
    ]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, one_thread: None, ray_local: None) -> Path:
    """A run with ``train.final`` that trains in this process; the last item of every user is
    new.
    """
    folder = tmp_path_factory.mktemp("final")
    monday = [
        (f"u{user:02d}", f"i{(user + step) % 12:02d}" if step < 7 else f"new{user % 3}", 2 * step)
        for user in range(24)
        for step in range(8)
    ]
    rows(folder / "1-monday.csv", monday)
    rows(
        folder / "later.csv",
        [(f"u{u:02d}", f"i{(u + 8 + s) % 12:02d}", 30 + s) for u in range(16) for s in range(3)],
    )
    tree: dict[str, Any] = {
        "run": {"dir": str(folder / "run")},
        "data": {
            "source": {"kind": "canonical", "events": [str(folder / "[0-9]*.csv")]},
            "text": {"enabled": False},
            "num_shards": 1,
        },
        "model": {
            "width": 8,
            "item": {"text": False},
            "granularities": {"evolution": {"enabled": True}},
        },
        "train": {
            "epochs": 3,
            "batch_size": 8,
            "metric": "ndcg@5",
            "threads": 1,
            "lr": 0.01,
            "final": True,
        },
        "evaluate": {
            "ks": [5],
            "baselines": ["popularity"],
            "bootstrap": 100,
            "num_examples": 0,
            "ablate": False,
        },
        "registry": {"name": "pocket"},
        "promote": {"beat_baselines": False},
        "update": {"epochs": 1},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    with training_here() as trained:
        assert command(folder, "run") == 0
    assert len(trained) == 2, "one to measure, one to go out"
    return folder


def command(folder: Path, verb: str, *words: str) -> int:
    return main([verb, "--config", str(folder / "c.yaml"), *words])


def test_output_says_which_model_was_measured(story: Path) -> None:
    run = story / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    epochs = json.loads((run / "model/trained.json").read_text())["best_epoch"]
    final = {"through": "test", "events": 24 * 8, "epochs": epochs, "start": "anew"}
    assert metrics["data"]["final"] == final and metrics["data"]["fitted_through"] == "valid"
    assert "another model, trained on all 192 events" in " ".join(
        (run / "report.html").read_text().split()
    )
    bundle = read_bundle(run / "bundle")
    assert bundle.info.extra["final"] == final and bundle.info.extra["refit"] is True
    assert bundle.popularity_N[[bundle.item_ids.index(f"new{n}") for n in range(3)]].tolist() == [
        8,
        8,
        8,
    ]
    known = measured(run / "bundle", bundle)
    assert known.model.popularity_N[
        [bundle.item_ids.index(f"new{n}") for n in range(3)]
    ].tolist() == [0, 0, 0]
    card = (run / "bundle/MODEL_CARD.md").read_text()
    assert f"then trained for {epochs} epochs on all 192 events, including test" in card
    registered = json.loads((run / "registered.json").read_text())
    client = mlflow.MlflowClient(registered["tracking"])
    version = client.get_model_version("pocket", "1")
    assert (
        version.tags["final.events"] == "192"
        and "this one was trained on all 192 events" in version.description
    )
    assert client.get_run(registered["run_id"]).data.tags["final.through"] == "test"
    assert len(client.get_metric_history(registered["run_id"], "final.loss")) == epochs
    log = (run / "run.log").read_text()
    assert "training the final model on all 192 events, test included" in log and "(final)" in log


def test_finished_run_trains_nothing_when_resumed(story: Path) -> None:
    with training_here() as trained:
        assert command(story, "run", "--resume") == 0
        (story / "run/registered.json").unlink()
        assert command(story, "register", "--resume") == 0
    assert trained == []
    assert "run/final is trained already" in (story / "run/run.log").read_text()


def test_gate_compares_the_measured_models(story: Path, capsys: Captured) -> None:
    assert command(story, "promote") == 0
    record = json.loads((story / "run/promotion.json").read_text())
    assert {check["name"]: check["passed"] for check in record["checks"]}["leak"]
    assert any(
        "the challenger answers with weights trained on all events" in note
        for note in record["notes"]
    )
    version = record["challenger"]["version"]
    with training_here():
        assert command(story, "register", "--train.final", "false") == 0
    capsys.readouterr()
    # the measured models are equal, so the challenger is not better
    assert command(story, "promote") == 1
    record = json.loads((story / "run/promotion.json").read_text())
    assert record["champion"]["version"] == version
    assert record["comparison"]["challenger"] == record["comparison"]["champion"]
    assert any(
        "the champion answers with weights trained on all events" in note
        for note in record["notes"]
    )
    assert "final" not in json.loads((story / "run/metrics.json").read_text())["data"]
    assert not has_measured(read_bundle(story / "run/bundle").info)


def test_update_continues_from_weights_that_have_not_seen_its_validation_events(
    story: Path,
) -> None:
    """Sixteen users have three newer events; the final model was trained on the test events of the
    other eight.

    So the update continues from the weights before that, and validates on events that are new to
    them.
    """
    (story / "later.csv").rename(story / "2-later.csv")
    try:
        with training_here() as trained:
            assert (
                command(
                    story,
                    "update",
                    "--run.dir",
                    str(story / "next"),
                    "--update.model",
                    "models:/pocket/1",
                )
                == 0
            )
    finally:
        (story / "2-later.csv").rename(story / "later.csv")
    log = (story / "next/run.log").read_text()
    assert "starting from its evaluated weights" in log and "validation on 16 users" in log
    assert len(trained) in (1, 2)  # epoch 0 may win: then there is nothing to train on all events
    bundle = read_bundle(story / "next/bundle")
    assert (
        bundle.info.extra["final"]["events"] == 24 * 8 + 16 * 3
        and bundle.info.extra["final"]["start"] == "measured"
    )
    assert bundle.info.extra["parent"]["uri"] == "models:/pocket/1"


@pytest.mark.slow
def test_update_with_only_newer_events_continues_from_the_final_model(story: Path) -> None:
    """Every user has two newer events, for validation and test, so no event of the parent is used
    for them.
    """
    events = [
        (f"u{user:02d}", f"i{(user + 8 + step) % 12:02d}", 30 + step)
        for user in range(24)
        for step in range(2)
    ]
    rows(story / "2-all.csv", events)
    try:
        with training_here():
            assert (
                command(
                    story,
                    "update",
                    "--run.dir",
                    str(story / "all"),
                    "--update.model",
                    "models:/pocket/1",
                )
                == 0
            )
    finally:
        (story / "2-all.csv").unlink()
    log = (story / "all/run.log").read_text()
    assert "evaluated weights" not in log and "validation on 24 users" in log


def test_model_without_trained_granularity_is_only_fitted(story: Path) -> None:
    words = ["--run.dir", str(story / "fitted"), "--tracking.enabled", "false"]
    words += [
        "--model.granularities.evolution.enabled",
        "false",
        "--model.granularities.item_cf.enabled",
        "true",
    ]
    with training_here() as trained:
        assert command(story, "run", *words) == 0
    assert len(trained) == 1, "the one that is measured"
    bundle = read_bundle(story / "fitted/bundle")
    assert bundle.info.extra["final"] == {
        "through": "test",
        "events": 192,
        "epochs": 0,
        "start": "measured",
    }
    assert bundle.popularity_N.sum() == 192
    assert "fitting the final model on all 192 events" in (story / "fitted/run.log").read_text()


def test_a_used_up_budget_registers_the_evaluated_model(
    story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metrics then describe the registered model, and `recsys register` makes up for it."""
    monkeypatch.setattr(Budget, "fits_again", lambda self: False)
    words = ["--run.dir", str(story / "late"), "--tracking.enabled", "false"]
    with training_here():
        assert command(story, "run", *words, "--budget", "10m") == 0
    metrics, bundle = story / "late/metrics.json", story / "late/bundle"
    assert "the budget is used up" in (story / "late/run.log").read_text()
    assert "final" not in json.loads(metrics.read_text())["data"]
    assert read_bundle(bundle).popularity_N.sum() == 192 - 24
    with training_here():
        assert command(story, "register", *words) == 0
    assert json.loads(metrics.read_text())["data"]["final"]["events"] == 192
    assert read_bundle(bundle).popularity_N.sum() == 192


def test_members_of_an_update_are_weighted_on_users_new_to_the_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trained member has seen the validation events of the other users and would look too good
    on them.
    """
    from pipelines.steps import stacking

    config, dataset = settings(("evolution", "item_cf")), world(tmp_path / "d")
    config.model.fusion.stack = True
    asked: list[int] = []

    def gather(model: Any, queries: Any, *rest: Any) -> list[Any]:
        asked.extend(queries.histories.users_U.tolist())
        return []

    monkeypatch.setattr(stacking, "gather", gather)
    newer_V = np.arange(32) % 4 == 1
    trained = measured_of(trained_only(config), dataset)
    with pytest.raises(DataError, match="no validation user has a target that counts"):
        stacking.stacked(config, dataset, trained, print, stacking.OfParent(newer_V))  # type: ignore[arg-type]
    assert sorted(asked) == list(range(1, 32, 4))


def test_final_model_has_the_member_weights_of_validation(story: Path) -> None:
    """Closed-form members are fitted on all events; their weights and constants stay."""
    words = [
        "--run.dir",
        str(story / "stacked"),
        "--tracking.enabled",
        "false",
        "--model.fusion.stack",
        "true",
    ]
    words += [
        "--model.granularities.popularity.enabled",
        "true",
        "--model.granularities.item_cf.enabled",
        "true",
    ]
    with training_here():
        assert command(story, "run", *words) == 0
    bundle = read_bundle(story / "stacked/bundle")
    known = measured(story / "stacked/bundle", bundle)
    stacks = [model.encoders.stack for model in (bundle.model, known.model)]
    assert stacks[0] is not None and stacks[1] is not None
    assert torch.equal(stacks[0].weights_GM, stacks[1].weights_GM)
    assert bundle.popularity_N.sum() == 192 and known.model.popularity_N.sum() == 192 - 24
    timing = json.loads((story / "stacked/metrics.json").read_text())["timing"]
    assert timing["members_s"] > 0 and timing["final_s"] > 0, "the report lists them"
    report = (story / "stacked/report.html").read_text()
    assert "Without the training on all events" not in report, "written again after that training"


def test_final_training_keeps_the_evaluated_constants(story: Path) -> None:
    """Constants on the command line do not change it; ``train.final`` needs no new training of the
    measured model.
    """
    from pipelines.steps.final import as_trained

    config = settings(lr=0.5)
    origin = json.loads((story / "run/model/origin.json").read_text())
    assert as_trained(config, origin).train.lr == 0.01 and as_trained(config, {}) is config
    threads = config.model_copy(update={"train": config.train.model_copy(update={"threads": 7})})
    assert as_trained(threads, origin).train.threads == 7


def test_interrupted_evaluation_is_logged_when_resumed(
    story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command ends between writing the metrics and logging them; nothing is measured again."""
    run, changed = story / "run", ("--evaluate.bootstrap", "120")
    opened = json.loads((run / "tracking.json").read_text())
    client = mlflow.MlflowClient(opened["uri"])
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.evaluate.log_evaluation", Mock(side_effect=KeyboardInterrupt))
        assert command(story, "evaluate", *changed) == 130
    metrics = json.loads((run / "metrics.json").read_text())
    (run / ".metrics.json.123-0a1b2c3d").write_text("a half-written file of a killed command")
    before = client.get_run(opened["run_id"])
    monkeypatch.setattr("pipelines.evaluate.evaluate_model", Mock(side_effect=AssertionError))
    assert command(story, "evaluate", *changed, "--resume") == 0
    after = client.get_run(opened["run_id"])
    assert (before.info.status, after.info.status) == ("KILLED", "FINISHED")
    mark = f"{metrics['model_sha256'][:12]}-{metrics['settings_sha256'][:12]}"
    assert before.data.tags["evaluation"] != mark == after.data.tags["evaluation"]
    assert not list(run.glob(".metrics.json.*"))
