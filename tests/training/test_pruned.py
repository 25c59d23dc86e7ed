"""Pruning: training equals one without the pruned granularities, in all phases, resumed or with two
workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recsys.config import Config, build_config
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Split
from recsys.evaluation.validation import Validator
from recsys.training import phases
from recsys.training.context import Report, TrainContext
from recsys.training.fresh_model import Start
from recsys.training.pruned import KEPT, choose_pruned, pruned_names, transplant, without
from recsys.training.selected import selected_model
from tests.training.test_training import Interrupted, cycles, settings
from tests.two_processes import together

pytestmark = pytest.mark.usefixtures("one_thread")

# one with parameters only, one that refines items
PRUNED = frozenset({"behaviour", "collaborative"})


def checked(kind: str = "learned", **train: Any) -> Config:
    config = settings(epochs=2, refit=True, **train)
    config.model.fusion.kind = kind  # type: ignore[assignment]
    config.model.fusion.check = True
    config.model.fusion.signal_dropout = 0.2
    config.model.unit_vectors = True
    return config


def prune_two(names: Sequence[str], metric: Callable[[frozenset[str]], Array]) -> dict[str, float]:
    """In place of :func:`choose_pruned`: prunes ``PRUNED``."""
    metric(PRUNED)  # must leave the model as it was
    return {name: float(name not in PRUNED) for name in names}


def run(
    config: Config, dataset: PreparedDataset, context: TrainContext | None = None, start: Any = None
) -> Any:
    return phases.fit(
        config,
        dataset,
        Validator.of(config.train, config.evaluate),
        context or TrainContext(),
        start,
    )


@pytest.mark.parametrize("kind", ["learned", "gated"])
def test_pruned_model_equals_one_configured_without(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, config = cycles(tmp_path), checked(kind)
    other = without(config, PRUNED)
    assert config.model.granularities.behaviour.enabled, "the configuration itself stays"
    other.model.fusion.check = False
    expected = run(other, dataset)
    monkeypatch.setattr(phases, "choose_pruned", prune_two)
    found = run(config, dataset)
    assert pruned_names(found.choices) == PRUNED and found.best_epoch == expected.best_epoch
    by_phase = {
        phase: [row["loss"] for row in found.history if row["phase"] == phase]
        for phase in ("select", "refit")
    }
    assert by_phase == {
        phase: [row["loss"] for row in expected.history if row["phase"] == phase]
        for phase in by_phase
    }
    assert torch.equal(found.frozen.item_vectors_ND, expected.frozen.item_vectors_ND)
    for name, tensor in expected.weights.items():
        if not name.endswith("_K"):
            assert torch.equal(found.weights[name], tensor), name
    selected = [
        selected_model(setting, dataset, result)
        for setting, result in ((config, found), (other, expected))
    ]
    assert torch.equal(selected[0].item_vectors_ND, selected[1].item_vectors_ND), (
        "before the refit, too"
    )
    queries = dataset.histories().queries(Split.TEST)
    scale = 5 / 3 if kind == "gated" else 1.0  # λ of a gate are K times a share
    torch.testing.assert_close(
        found.frozen.scores(queries), scale * expected.frozen.scores(queries), rtol=1e-5, atol=1e-6
    )


def test_pruned_granularity_is_trained_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The phase *join* changes nothing else; behaviour reads the last item of the circle, which
    decides the next.
    """
    dataset, config = cycles(tmp_path), checked()
    config.train.epochs = 12
    config.train.lr = 0.02
    config.train.refit = False
    config.train.patience = 12
    monkeypatch.setattr(phases, "choose_pruned", prune_two)
    found = run(config, dataset)
    join = [row["loss"] for row in found.history if row["phase"] == "join"]
    assert len(join) == found.best_epoch > 3 and join[-1] < 0.95 * join[0]
    queries = dataset.histories().queries(Split.TEST)
    scores_BN = found.frozen.scores_of(queries, ["behaviour"])
    assert 0 < scores_BN.abs().max() < 1e-9, (
        "a small weight, without effect next to another granularity"
    )
    ranks_B = (
        scores_BN > scores_BN.gather(1, torch.as_tensor(queries.target_items).long()[:, None])
    ).sum(1)
    assert ranks_B.float().mean() < 6, "9.5 by chance"


@pytest.mark.parametrize("stop", ["checked", "select", "refit", "join"])
def test_resumed_equals_uninterrupted(
    stop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``checked``: interrupted in the training before the pruning."""
    monkeypatch.setattr(phases, "choose_pruned", prune_two)
    dataset, config = cycles(tmp_path / "data"), checked(evaluate_every=1)
    whole = run(config, dataset)
    seen: list[str] = []

    def report(values: Report, checkpoint: Path | None) -> None:
        assert checkpoint is not None
        seen.append(str(values["phase"]))
        phase = "checked" if values["phase"] == "select" and len(seen) <= 2 else values["phase"]
        checkpoint.rename(tmp_path / "last" if phase == stop else tmp_path / f"{len(seen)}")
        if phase == stop:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(config, dataset, TrainContext(report=report))
    resumed = run(config, dataset, TrainContext(resume_from=tmp_path / "last"))
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]
    for name, tensor in whole.frozen.tensors().items():
        assert torch.equal(resumed.frozen.tensors()[name], tensor), name


def test_warm_start_is_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every granularity starts with its weights, whether it was pruned before or not."""
    dataset, config = cycles(tmp_path), checked()
    monkeypatch.setattr(phases, "choose_pruned", prune_two)
    first = run(config, dataset)
    start = Start(first.weights, first.frozen.sizes.inputs, names=tuple(first.frozen.trained_names))
    second = run(config, dataset, start=start)
    assert pruned_names(second.choices) == PRUNED
    assert second.history[-1]["loss"] < first.history[-1]["loss"], "starts where the first ended"


def _worker(rank: int, world: int, folder: str, out: str, config: dict[str, Any]) -> None:
    phases.choose_pruned = prune_two  # type: ignore[assignment]
    result = run(build_config(config), PreparedDataset(folder), TrainContext(rank, world))
    if rank == 0:
        torch.save({"history": result.history, "items": result.frozen.item_vectors_ND}, out)


@pytest.mark.slow
def test_two_workers_prune_like_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, config = cycles(tmp_path / "data"), checked(batch_size=15)
    config.model.fusion.signal_dropout = 0.0  # drawn by each worker for its own rows
    config.model.granularities.stratum.enabled = False
    monkeypatch.setattr(phases, "choose_pruned", prune_two)
    alone = run(config, dataset)
    out = str(tmp_path / "out.pt")
    together(_worker, tmp_path, dataset.root, out, config.model_dump(mode="json"))
    both = torch.load(out, weights_only=True)
    for one, two in zip(alone.history, both["history"], strict=True):
        assert two["phase"] == one["phase"] and two["loss"] == pytest.approx(one["loss"], rel=1e-3)


def test_check_prunes_only_gains_beyond_noise() -> None:
    """By hand, for a hundred equal users: .6 without a or b, .4 without c, .5 with all, .55 without
    a and b.
    """
    values = {frozenset(): 0.5, frozenset("a"): 0.6, frozenset("b"): 0.6, frozenset("c"): 0.4}
    values |= {frozenset("ab"): 0.55, frozenset("ac"): 0.3}

    def metric(pruned: frozenset[str]) -> Array:
        return np.full(100, values[pruned]) + np.where(np.arange(100) % 2, 0.01, -0.01)

    assert choose_pruned(["a", "b", "c"], metric) == {"a": 0.0, "b": 1.0, "c": 1.0}
    assert choose_pruned(["a"], metric) == {"a": 1.0}, "the last one is never pruned"
    noise = np.random.default_rng(0).normal(size=100)
    assert (
        choose_pruned(["a", "b"], lambda pruned: noise * len(pruned)) == {"a": 1.0, "b": 1.0}
        or noise.mean() > 0.1
    )
    assert pruned_names({KEPT: {"a": 0.0, "b": 1.0}}) == {"a"} and pruned_names({}) == frozenset()


def test_transplant_copies_weights_by_name() -> None:
    """λ is matched by the granularity, other weights by their own name; what the other model lacks
    stays.
    """
    key = "model.encoders.fusion.prior_K"
    other = {
        key: torch.tensor([1.0, 2.0]),
        "model.x": torch.ones(2),
        "model.encoders.fitted_weights": torch.ones(1),
    }
    own = {key: torch.tensor([7.0, 8.0, 9.0]), "model.x": torch.zeros(2), "model.y": torch.zeros(1)}
    own["model.encoders.fitted_weights"] = torch.zeros(1)
    found = transplant(other, ["c", "a"], own, ["a", "b", "c"])
    assert found[key].tolist() == [2.0, 8.0, 1.0] and own[key].tolist() == [7.0, 8.0, 9.0]
    assert found["model.x"].tolist() == [1.0, 1.0] and found["model.y"].tolist() == [0.0]
    assert found["model.encoders.fitted_weights"].tolist() == [1.5]
