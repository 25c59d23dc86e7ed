"""The training loop: two workers equal one, resumed equals uninterrupted, nothing is chosen on
training events.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recsys.config import Config, build_config
from recsys.data.batches import every_position, whole_history
from recsys.data.dataset import PreparedDataset
from recsys.data.hidden import Hidden
from recsys.data.histories import Histories, Queries, Split
from recsys.data.loader import LoaderConfig, TrainingLoader
from recsys.errors import ArtifactError, ConfigError, DataError, TrainingError
from recsys.evaluation.validation import Validator
from recsys.training.checkpoint import load_trained, save_trained
from recsys.training.context import Report, TrainContext
from recsys.training.fresh_model import build_graphs
from recsys.training.phases import fit
from recsys.training.selected import selected_model
from tests.handmade import leave_last, write_dataset
from tests.two_processes import together

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_ITEMS = 20


def cycles(folder: Path, ordered: bool = True) -> PreparedDataset:
    """Users walk around a circle of items: the next item is certain once the last one is known."""
    random = np.random.default_rng(0)
    starts = random.integers(0, NUM_ITEMS, size=40)
    lengths = random.integers(5, 9, size=40)
    walks = [
        [int(start + step) % NUM_ITEMS for step in range(length)]
        for start, length in zip(starts, lengths, strict=True)
    ]
    friends = [(user, (user + 1) % 40) for user in range(0, 40, 2)]
    return write_dataset(
        folder,
        [leave_last(*walk) for walk in walks],
        NUM_ITEMS,
        friends=friends,
        text_width=8,
        ordered=ordered,
    )


def settings(**train: Any) -> Config:
    return build_config(
        {
            "model": {
                "width": 16,
                "max_history": 10,
                "item": {"text_whiten": 4},
                "granularities": {
                    "evolution": {"enabled": True, "dropout": 0.0, "input_dropout": 0.0},
                    "behaviour": {"enabled": True, "dropout": 0.0, "heads": 2},
                    "collaborative": {"enabled": True, "layers": 2},
                    "social": {"enabled": True, "dropout": 0.0},
                    "stratum": {"enabled": True, "num_strata": [2, 3]},
                },
                "fusion": {"signal_dropout": 0.0},
            },
            "train": {
                "epochs": 4,
                "batch_size": 16,
                "lr": 0.01,
                "metric": "ndcg@5",
                "refit": False,
                **train,
            },
            "evaluate": {"ks": [5]},
        }
    )


def run(config: Config, dataset: PreparedDataset, context: TrainContext | None = None) -> Any:
    return fit(
        config, dataset, Validator.of(config.train, config.evaluate), context or TrainContext()
    )


def test_loop_learns_a_certain_next_item(tmp_path: Path) -> None:
    config = settings(epochs=25, patience=25, lr=0.02)
    result = run(config, cycles(tmp_path))
    losses = [report["loss"] for report in result.history]
    assert losses[-1] < 0.5 * losses[0]
    best = max(report["ndcg@5"] for report in result.history)
    assert best > 0.9 and result.history[result.best_epoch - 1]["ndcg@5"] == best


def _worker(rank: int, world: int, folder: str, out: str, config: dict[str, Any]) -> None:
    result = run(build_config(config), PreparedDataset(folder), TrainContext(rank, world))
    if rank == 0:
        torch.save({"history": result.history, "items": result.frozen.item_vectors_ND}, out)


def of_two(config: Config, dataset: PreparedDataset, folder: Path) -> dict[str, Any]:
    """History and item vectors of a training by two workers."""
    out = folder / "out.pt"
    together(_worker, folder, dataset.root, str(out), config.model_dump(mode="json"))
    found: dict[str, Any] = torch.load(out, weights_only=True)
    return found


@pytest.mark.parametrize(("ordered", "loss"), [(True, "sampled_softmax"), (False, "full_softmax")])
def test_two_workers_take_the_steps_of_one(tmp_path: Path, ordered: bool, loss: str) -> None:
    """Real processes over gloo; 40 users in batches of 15 leave an odd row to share."""
    dataset = cycles(tmp_path / "data", ordered)
    unordered = {} if ordered else {"history_mask_rate": 0.2}
    power = 1.0 if ordered else 0.5
    config = settings(
        batch_size=15, loss={"kind": loss, "num_negatives": 8, "event_power": power}, **unordered
    )
    config.model.granularities.evolution.enabled = ordered
    alone = run(config, dataset)
    both = of_two(config, dataset, tmp_path)
    for one, two in zip(alone.history, both["history"], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert two["ndcg@5"] == pytest.approx(one["ndcg@5"], abs=1e-3)
    torch.testing.assert_close(both["items"], alone.frozen.item_vectors_ND, rtol=1e-2, atol=2e-3)


class Interrupted(Exception):
    """Raised in place of a lost process."""


def keep_checkpoints(
    folder: Path, stop_after: int | None, phase: str = "select"
) -> Callable[[Report, Path | None], None]:
    def report(values: Report, checkpoint: Path | None) -> None:
        assert checkpoint is not None
        checkpoint.rename(folder / f"{values['phase']}-{values['epoch']}")
        if (values["phase"], values["epoch"]) == (phase, stop_after):
            raise Interrupted

    return report


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    dataset, config = cycles(tmp_path / "data"), settings(refit=True)
    whole = run(config, dataset)
    with pytest.raises(Interrupted):
        run(config, dataset, TrainContext(report=keep_checkpoints(tmp_path, 2)))
    resumed = run(config, dataset, TrainContext(resume_from=tmp_path / "select-2"))
    assert [report["loss"] for report in resumed.history] == [
        report["loss"] for report in whole.history
    ]
    torch.testing.assert_close(
        resumed.frozen.item_vectors_ND, whole.frozen.item_vectors_ND, rtol=0, atol=0
    )


def stop_inside(folder: Path, saves: int) -> TrainContext:
    """Keeps checkpoints within epochs as inside-1, inside-2 …; interrupts after the last requested
    one.
    """
    count = itertools.count(1)

    def save(checkpoint: Path | None) -> None:
        number = next(count)
        if checkpoint is not None:
            checkpoint.rename(folder / f"inside-{number}")
        if number == saves:
            raise Interrupted

    return TrainContext(save=save)


@pytest.mark.parametrize(
    ("saves", "phase", "window_events"),
    [(1, "select", 60), (4, "select", 4_000_000), (10, "refit", 60)],
)
def test_resumed_within_an_epoch_equals_uninterrupted(
    tmp_path: Path, saves: int, phase: str, window_events: int
) -> None:
    """Bit for bit: data position, optimiser, schedule, mean loss and the random numbers of
    dropout.
    """
    dataset = cycles(tmp_path / "data")
    config = settings(
        refit=True, patience=9, batch_size=4, checkpoint_steps=4, window_events=window_events
    )
    config.model.granularities.evolution.dropout = 0.3
    whole = run(config, dataset)
    with pytest.raises(Interrupted):
        run(config, dataset, stop_inside(tmp_path, saves))
    checkpoint = tmp_path / f"inside-{saves}"
    progress = json.loads((checkpoint / "progress.json").read_text())
    assert progress["step"] % 4 == 0 and progress["step"] > 0 and progress["phase"] == phase
    resumed = run(config, dataset, TrainContext(resume_from=checkpoint))
    assert [{**report, "seconds": 0} for report in resumed.history] == [
        {**report, "seconds": 0} for report in whole.history
    ]
    torch.testing.assert_close(
        resumed.frozen.item_vectors_ND, whole.frozen.item_vectors_ND, rtol=0, atol=0
    )


def _interrupted_worker(
    rank: int, world: int, folder: str, out: str, config: dict[str, Any]
) -> None:
    context = replace(stop_inside(Path(out), 3), rank=rank, world_size=world)
    with contextlib.suppress(Interrupted):
        run(build_config(config), PreparedDataset(folder), context)


@pytest.mark.slow
def test_one_worker_resumes_within_an_epoch_of_two_workers(tmp_path: Path) -> None:
    dataset, config = cycles(tmp_path / "data"), settings(batch_size=8, checkpoint_steps=2)
    whole = run(config, dataset)
    together(
        _interrupted_worker, tmp_path, dataset.root, str(tmp_path), config.model_dump(mode="json")
    )
    resumed = run(config, dataset, TrainContext(resume_from=tmp_path / "inside-3"))
    assert [r["loss"] for r in resumed.history] == pytest.approx(
        [r["loss"] for r in whole.history], rel=1e-4
    )
    torch.testing.assert_close(
        resumed.frozen.item_vectors_ND, whole.frozen.item_vectors_ND, rtol=1e-2, atol=2e-3
    )


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    dataset, config = cycles(tmp_path / "data"), settings()
    with pytest.raises(Interrupted):
        run(config, dataset, TrainContext(report=keep_checkpoints(tmp_path, 1)))
    (tmp_path / "select-1/model.safetensors").write_bytes(b"broken")
    with pytest.raises(ArtifactError, match="select-1 is damaged"):
        run(config, dataset, TrainContext(resume_from=tmp_path / "select-1"))


def test_same_seed_same_metrics(tmp_path: Path) -> None:
    dataset = cycles(tmp_path)
    first, second = run(settings(), dataset), run(settings(), dataset)
    assert [r["loss"] for r in first.history] == [r["loss"] for r in second.history]


@pytest.mark.parametrize("seed", [20_261_130, 2**63 - 1])
def test_any_seed_trains(tmp_path: Path, seed: int) -> None:
    config = settings(epochs=1, loss={"kind": "sampled_softmax", "num_negatives": 4})
    config.seed = seed
    assert np.isfinite(run(config, cycles(tmp_path)).history[0]["loss"])


def test_early_stopping_counts_validations_without_gain(tmp_path: Path) -> None:
    config = settings(epochs=30, patience=2, lr=1e-12)
    result = run(config, cycles(tmp_path))
    assert result.best_epoch == 1 and len(result.history) == 3


def test_refit_trains_on_validation_events_for_the_selected_epochs(tmp_path: Path) -> None:
    dataset, config = cycles(tmp_path), settings(refit=True)
    result = run(config, dataset)
    again = [report for report in result.history if report["phase"] == "refit"]
    assert len(again) == result.best_epoch
    assert all("ndcg@5" not in report for report in again), "nothing is measured on training events"
    train, valid = (build_graphs(dataset, split) for split in (Split.TRAIN, Split.VALID))
    assert len(valid.users_E) > len(train.users_E)


def test_refit_keeps_the_selected_weights(tmp_path: Path) -> None:
    """They give the validation metric of the selected epoch, also if the refit was interrupted."""
    dataset, config = cycles(tmp_path / "data"), settings(refit=True)
    result = run(config, dataset)
    queries = dataset.histories().queries(Split.VALID)
    best = max(report["ndcg@5"] for report in result.history if "ndcg@5" in report)
    save_trained(tmp_path / "model", result)
    selected = selected_model(config, dataset, load_trained(tmp_path / "model"))
    assert Validator.of(config.train, config.evaluate)(selected, queries).mean() == pytest.approx(
        best, abs=1e-6
    )
    assert not torch.equal(selected.item_vectors_ND, result.frozen.item_vectors_ND)
    with pytest.raises(Interrupted):
        run(config, dataset, TrainContext(report=keep_checkpoints(tmp_path, 1, "refit")))
    resumed = run(config, dataset, TrainContext(resume_from=tmp_path / "refit-1"))
    assert result.selected.keys() == resumed.selected.keys()
    assert all(
        torch.equal(resumed.selected[name], tensor) for name, tensor in result.selected.items()
    )
    alone = run(settings(), dataset)
    assert alone.selected is None and selected_model(settings(), dataset, alone) is alone.frozen
    with pytest.raises(
        ArtifactError,
        match=r"selected\.safetensors.* an earlier release trained it; run `recsys train`",
    ):
        selected_model(config, dataset, replace(result, selected=None))


def test_test_events_reach_neither_graphs_nor_model(tmp_path: Path) -> None:
    """Datasets that differ only in their test events train the same model."""
    first = cycles(tmp_path / "a")
    walks = first.histories()
    other = [
        [
            (int(item) if part != Split.TEST else 7, 0, int(time), Split(part))
            for item, time, part in zip(*columns, strict=True)
        ]
        for columns in (
            (row.items_E, row.times_E, row.splits_E)
            for row in (walks.take(np.array([u])) for u in np.argsort(walks.users_U))
        )
    ]
    friends = [(user, (user + 1) % 40) for user in range(0, 40, 2)]
    second = write_dataset(tmp_path / "b", other, NUM_ITEMS, friends=friends, text_width=8)
    one, two = run(settings(refit=True), first), run(settings(refit=True), second)
    assert torch.equal(one.frozen.item_vectors_ND, two.frozen.item_vectors_ND)


def test_trained_model_is_equal_after_save_and_load(tmp_path: Path) -> None:
    dataset = cycles(tmp_path / "data")
    result = run(settings(), dataset)
    save_trained(tmp_path / "model", result)
    loaded = load_trained(tmp_path / "model")
    queries = dataset.histories().queries(Split.TEST)
    torch.testing.assert_close(
        loaded.frozen.scores(queries), result.frozen.scores(queries), rtol=1e-3, atol=1e-3
    )
    assert loaded.history == result.history and loaded.best_epoch == result.best_epoch
    file = tmp_path / "model/model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(
        ArtifactError, match=r"damaged \(model\.safetensors is not what was written\)"
    ):
        load_trained(tmp_path / "model")
    (tmp_path / "model/trained.json").unlink()
    with pytest.raises(ArtifactError, match="holds no trained model"):
        load_trained(tmp_path / "model")


@pytest.mark.parametrize("loss", ["full_softmax", "sampled_softmax"])
def test_bfloat16_trains_close_to_float32(tmp_path: Path, loss: str) -> None:
    dataset = cycles(tmp_path)
    runs = [
        run(settings(precision=kind, loss={"kind": loss}), dataset)
        for kind in ("float32", "bfloat16")
    ]
    exact, rounded = ([report["loss"] for report in result.history] for result in runs)
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=0.02)


def test_resuming_after_early_stopping_trains_no_further(tmp_path: Path) -> None:
    dataset, config = cycles(tmp_path / "data"), settings(epochs=30, patience=2, lr=1e-12)
    with pytest.raises(Interrupted):
        run(config, dataset, TrainContext(report=keep_checkpoints(tmp_path, 3)))
    resumed = run(config, dataset, TrainContext(resume_from=tmp_path / "select-3"))
    assert len(resumed.history) == 3


def test_settings_without_effect_are_refused(tmp_path: Path) -> None:
    dataset = cycles(tmp_path)
    with pytest.raises(ConfigError, match="act on unordered data only"):
        run(settings(history_mask_rate=0.2), dataset)
    with pytest.raises(ConfigError, match="label_smoothing works with full_softmax only"):
        run(settings(loss={"kind": "sampled_softmax", "label_smoothing": 0.1}), dataset)


def test_user_without_any_signal_gets_popular_items(tmp_path: Path) -> None:
    dataset = cycles(tmp_path)
    frozen = run(settings(epochs=1), dataset).frozen
    nobody = Histories.of_items([[]])
    scores = frozen.scores(Queries(nobody, np.zeros(2, np.int64), np.zeros(0, np.int32)))
    graphs = build_graphs(dataset, Split.TRAIN)
    assert torch.equal(scores[0], torch.bincount(graphs.items_E, minlength=NUM_ITEMS).float())


def test_diverging_loss_raises_an_error_that_names_the_cure(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"the loss is nan in epoch \d+; lower train.lr"):
        run(settings(lr=1e30, clip_norm=0, epochs=6), cycles(tmp_path))


def test_evolution_on_unordered_data_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs ordered events"):
        run(settings(), cycles(tmp_path, ordered=False))


class TestLoader:
    def loader(self, dataset: PreparedDataset, **options: Any) -> TrainingLoader:
        config = LoaderConfig(16, 4, 0.0, 1.0, options.pop("window_events", 10**6), 0)
        return TrainingLoader(dataset, Split.TRAIN, config, **options)

    @pytest.mark.parametrize("window_events", [10**6, 60])
    def test_every_event_is_a_target_once_an_epoch(
        self, tmp_path: Path, window_events: int
    ) -> None:
        dataset = cycles(tmp_path)
        loader = self.loader(dataset, window_events=window_events)
        seen = dataset.histories().through(Split.TRAIN)
        expected = np.sort(np.delete(seen.items_E, seen.offsets_U1[:-1]))
        for epoch in (0, 1):
            steps = list(loader.epoch(epoch))
            assert len(steps) == loader.num_steps
            found = np.concatenate([step.batch.targets_P.numpy() for step in steps])
            assert np.array_equal(np.sort(found), expected)

    def test_two_ranks_share_every_global_batch(self, tmp_path: Path) -> None:
        dataset = cycles(tmp_path)
        whole = list(self.loader(dataset).epoch(3))
        parts = [list(self.loader(dataset, rank=rank, world_size=2).epoch(3)) for rank in (0, 1)]
        for step, one, two in zip(whole, *parts, strict=True):
            assert (
                step.weight
                == one.weight
                == two.weight
                == len(one.batch.targets_P) + len(two.batch.targets_P)
            )
            users = torch.cat([one.batch.users_U, two.batch.users_U]).sort().values
            assert torch.equal(users, step.batch.users_U.sort().values)

    def test_more_workers_than_users(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="fewer than 500 workers"):
            self.loader(cycles(tmp_path), world_size=500)


def test_windows_make_every_later_event_a_target_once() -> None:
    windows = Histories.of_items([[0, 1, 2, 3, 4, 5, 6], [8, 9], [5]], [0, 1, 2]).windows(4)
    rows = [
        windows.items_E[a:b].tolist()
        for a, b in zip(windows.offsets_U1[:-1], windows.offsets_U1[1:], strict=True)
    ]
    assert rows == [[3, 4, 5, 6], [0, 1, 2, 3], [8, 9], [5]]
    assert windows.users_U.tolist() == [0, 0, 1, 2]


def test_positions_of_a_batch() -> None:
    batch = every_position(Histories.of_items([[5, 6, 7], [8]]), 10, np.array([0, 1]))
    assert batch.history_UL.tolist() == [[5, 6], [0, 0]] and batch.lengths_U.tolist() == [2, 0]
    assert batch.rows_B.tolist() == [0, 0] and batch.seen_B.tolist() == [1, 2]
    assert batch.targets_P.tolist() == [6, 7]


def test_hidden_events_stay_targets_and_leave_the_graph() -> None:
    histories = Histories.of_items([[1, 2, 3, 4, 5, 6]], [0])
    hidden = Hidden(0.5, seed=4)
    batch = whole_history(histories, 10, np.array([0]), hidden)
    gone = set(histories.items_E[hidden.of(np.zeros(6, np.int32), histories.items_E)].tolist())
    assert 0 < len(gone) < 6
    assert set(batch.history_UL[0, : batch.lengths_U[0]].tolist()) == set(range(1, 7)) - gone
    assert batch.targets_P.tolist() == [1, 2, 3, 4, 5, 6]
    other = replace(hidden, seed=5)
    assert not np.array_equal(
        other.of(np.zeros(6), histories.items_E), hidden.of(np.zeros(6), histories.items_E)
    )


def test_short_histories_keep_a_tenth_of_the_events() -> None:
    users_E, items_E = np.repeat(np.arange(400), 100), np.tile(np.arange(100, dtype=np.int32), 400)
    hidden = Hidden(0.3, seed=4, short=0.5)
    shares_U = hidden.of(users_E, items_E).reshape(400, 100).mean(1)
    is_short_U = shares_U > 0.6
    assert abs(is_short_U.mean() - 0.5) < 0.1
    assert abs(shares_U[is_short_U].mean() - 0.9) < 0.02
    assert abs(shares_U[~is_short_U].mean() - 0.3) < 0.02
    other_U = replace(hidden, seed=5).of(users_E, items_E).reshape(400, 100).mean(1) > 0.6
    assert 0 < np.count_nonzero(other_U & is_short_U) < is_short_U.sum(), "new users in each epoch"
    assert Hidden(0.0, seed=4, short=1.0).hides and not Hidden(0.0, seed=4).hides


def test_steps_of_ordered_data_have_similar_numbers_of_targets(tmp_path: Path) -> None:
    """Half of the users have one target, the others nine: no step has only short histories."""
    walks = [leave_last(*range(4 if user % 2 else 12)) for user in range(80)]
    dataset = write_dataset(tmp_path, walks, NUM_ITEMS)
    for world_size in (1, 2):
        loader = TrainingLoader(
            dataset, Split.TRAIN, LoaderConfig(8, 20, 0.0, 1.0, 10**6, 0), 0, world_size
        )
        weights = [step.weight for step in loader.epoch(0)]
        assert len(weights) == loader.num_steps == 10
        assert max(weights) < 1.5 * min(weights)
