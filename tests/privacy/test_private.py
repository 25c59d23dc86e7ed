"""`train.privacy`: the effect of a user is bounded, the budget equals that of Opacus, other
settings are refused.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pipelines.cli import main
from recsys.config import Config, build_config
from recsys.config.contradictions import check_settings
from recsys.config.privacy import PrivateConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Histories, Split
from recsys.data.loader import LoaderConfig, TrainingLoader
from recsys.errors import ConfigError
from recsys.evaluation.validation import Validator
from recsys.training.context import TrainContext
from recsys.training.fresh_model import Start, build_graphs, build_model
from recsys.training.phases import fit
from recsys.training.private import (
    COUNTED_ITEMS,
    PRIVACY,
    PrivateSteps,
    add_clipped,
    bounded_counts,
    plan,
)
from recsys.training.step import StepLoss
from tests.handmade import leave_last, write_dataset
from tests.training_here import training_here


def settings(**train: Any) -> Config:
    return build_config(
        {
            "model": {
                "width": 8,
                "max_history": 6,
                "granularities": {"evolution": {"enabled": True}},
            },
            "train": {
                "epochs": 2,
                "batch_size": 4,
                "lr": 0.01,
                "metric": "ndcg@5",
                "warmup": 0.0,
                "privacy": {"epsilon": 5.0},
                **train,
            },
            "evaluate": {"ks": [5]},
        }
    )


def world(folder: Path, users: int = 12) -> PreparedDataset:
    return write_dataset(
        folder, [leave_last(*np.roll(np.arange(9), -u)[:6].tolist()) for u in range(users)], 9
    )


def test_budget_equals_that_of_opacus() -> None:
    """The search of Opacus gives the same noise, except for the share of ε for the counts."""
    from opacus.accountants import RDPAccountant
    from opacus.accountants.utils import get_noise_multiplier

    found = plan(PrivateConfig(epsilon=3.0, delta=1e-4, popularity_share=0.01), 1000, 100, 20)
    assert found.steps == 200 and found.sample_rate == 0.1 and found.steps_of_epoch == 10
    alone = get_noise_multiplier(
        target_epsilon=3.0, target_delta=1e-4, sample_rate=0.1, steps=200, accountant="rdp"
    )
    assert alone * 0.98 < found.noise_multiplier < alone * 1.1
    accountant = RDPAccountant()
    accountant.history = [
        (found.noise_multiplier, 0.1, 200),
        (found.counts_noise_multiplier, 1.0, 1),
    ]
    assert 2.99 < found.epsilon <= 3.0 and accountant.get_epsilon(1e-4) == pytest.approx(
        found.epsilon
    )
    assert plan(PrivateConfig(epsilon=1.0), 943, 100, 1).delta == 1e-4
    assert (
        plan(PrivateConfig(epsilon=1.0), 943, 100, 1).noise_multiplier > found.noise_multiplier / 10
    )


def test_gradient_of_a_user_is_clipped_over_all_parameters() -> None:
    sums = [torch.zeros(2), torch.zeros(1)]
    add_clipped(sums, (torch.tensor([3.0, 0.0]), torch.tensor([4.0])), 1.0)
    assert sums[0].tolist() == pytest.approx([0.6, 0.0]) and sums[1].tolist() == pytest.approx(
        [0.8]
    )
    add_clipped(sums, (torch.tensor([0.3, 0.0]), None), 1.0)
    assert sums[0].tolist() == pytest.approx([0.9, 0.0])


def _steps(
    dataset: PreparedDataset, config: Config, noise: float, rate: float = 1.0
) -> tuple[PrivateSteps, StepLoss]:
    torch.manual_seed(0)
    loader = TrainingLoader(dataset, Split.TRAIN, LoaderConfig(4, 6, 0.0, 1.0, 10**6, 0))
    model = build_model(config.model, config.train, dataset, Split.TRAIN).eval()
    loss = StepLoss(
        model,
        build_graphs(dataset, Split.TRAIN, model, config.evaluate, config.seed),
        config.train.loss,
        dataset,
    )
    budget = plan(config.train.privacy, PrivateSteps.num_users(loader), 4, 2)
    changed = {"noise_multiplier": noise, "sample_rate": rate, "clip": 0.05}
    return (
        PrivateSteps(loader, type(budget)(**{**budget.to_json(), **changed}), torch.device("cpu")),
        loss,
    )


def _gradient(steps: PrivateSteps, loss: StepLoss, rows: list[int]) -> torch.Tensor:
    steps.set_gradients(loss, rows, (0, 0, 0))
    return torch.cat([p.grad.flatten() for p in loss.parameters() if p.grad is not None]).clone()


def test_one_user_more_or_less_changes_a_step_by_at_most_the_clip(
    tmp_path: Path, one_thread: None
) -> None:
    """Without noise, of each user in turn, in units of the sum."""
    steps, loss = _steps(world(tmp_path / "d"), settings(), noise=0.0)
    users = steps.budget.users
    everybody = _gradient(steps, loss, list(range(users))) * users
    moved = [
        everybody - _gradient(steps, loss, [u for u in range(users) if u != out]) * users
        for out in range(users)
    ]
    lengths = [float(one.norm()) for one in moved]
    assert max(lengths) <= 0.05 * (1 + 1e-4) and min(lengths) > 0.049, (
        "with such a small clip, all have this norm"
    )


@pytest.mark.slow
def test_gradient_of_a_user_does_not_depend_on_other_drawn_users(
    tmp_path: Path, one_thread: None
) -> None:
    steps, loss = _steps(world(tmp_path / "d"), settings(), noise=0.0)
    one, two, both = (_gradient(steps, loss, rows) for rows in ([0], [5], [0, 5]))
    assert torch.allclose(one + two, both, atol=1e-6)


def test_noise_has_the_stated_size_and_is_never_the_same(tmp_path: Path, one_thread: None) -> None:
    steps, loss = _steps(world(tmp_path / "d"), settings(), noise=3.0)
    first, second = (_gradient(steps, loss, []) * steps.budget.users for _ in range(2))
    assert not torch.equal(first, second)
    assert float(torch.cat([first, second]).std()) == pytest.approx(3.0 * 0.05, rel=0.1)


def test_users_are_drawn_independently(tmp_path: Path) -> None:
    steps, _ = _steps(world(tmp_path / "d", 40), settings(), noise=1.0, rate=0.25)
    sizes = [len(steps.drawn()) for _ in range(400)]
    assert np.mean(sizes) == pytest.approx(10, abs=0.6) and np.var(sizes) == pytest.approx(
        7.5, rel=0.35
    )


def test_user_counts_for_a_bounded_number_of_items() -> None:
    found = bounded_counts(
        Histories.of_items([list(range(50)), [3, 3, 4]]), 60, np.random.default_rng(0)
    )
    assert found.sum() == COUNTED_ITEMS + 2 and found[3] >= 1 and found[50:].sum() == 0


@pytest.mark.parametrize("refit", [True, False])
def test_private_training_chooses_nothing_and_reports_its_budget(
    tmp_path: Path, refit: bool, one_thread: None
) -> None:
    dataset, config = world(tmp_path / "d", 60), settings(refit=refit, evaluate_every=2)
    found = fit(config, dataset, Validator.of(config.train, config.evaluate), TrainContext())
    assert found.best_epoch == 2 and found.selected is None and found.refit == refit
    spent = found.choices[PRIVACY]
    assert spent["epsilon"] <= 5.0 and spent["steps"] == 30 and spent["users"] == 60
    assert json.loads(json.dumps(found.choices)) == found.choices
    exact = build_graphs(dataset, Split.VALID if refit else Split.TRAIN).degree_N
    assert not torch.equal(found.frozen.popularity_N, exact), "counts are noised"
    again = fit(config, dataset, Validator.of(config.train, config.evaluate), TrainContext())
    assert not torch.equal(found.frozen.items.vectors_SD, again.frozen.items.vectors_SD)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model.granularities.item_knn.enabled": True}, "item_knn counts raw events"),
    (
        {"model.granularities.collaborative.enabled": True},
        "collaborative reads rows of other users",
    ),
    ({"model.granularities.social.enabled": True}, "social reads rows of other users"),
    ({"model.granularities.stratum.enabled": True}, "stratum reads rows of other users"),
    ({"model.fusion.stack": True}, "stack chooses weights on validation"),
    ({"model.fusion.check": True}, "check chooses granularities on validation"),
    ({"train.ratings": True}, "ratings fits a head to raw values"),
    ({"train.final": True}, "final trains a second model"),
    ({"train.num_workers": 2}, "num_workers is 2"),
    ({"train.refit": False}, "an epoch would be chosen on validation"),
    ({"train.loss.kind": "sampled_softmax"}, "draws negatives by how often items occur"),
    ({"data.context": ["weather"]}, "context codes columns"),
]


@pytest.mark.parametrize(
    ("changes", "why"), REFUSED, ids=[next(iter(changes)) for changes, _ in REFUSED]
)
def test_settings_that_cannot_be_private_are_refused(changes: dict[str, Any], why: str) -> None:
    tree = settings().model_dump(mode="json")
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        node = tree
        for part in path:
            node = node[part]
        node[last] = value
    with pytest.raises(ConfigError, match=why):
        check_settings(build_config(tree), ("train",))
    check_settings(settings(), ("train",))


def test_private_search_update_and_selected_model_are_refused(tmp_path: Path) -> None:
    dataset, config = world(tmp_path / "d"), settings()
    with pytest.raises(ConfigError, match="a search and a chosen model"):
        check_settings(config, ("prepare", "sweep", "best"))
    with pytest.raises(ConfigError, match="a search and a chosen model"):
        check_settings(build_config({"train": {"privacy": {"epsilon": 1}}}), ("train",))
    with pytest.raises(ConfigError, match="cannot start from another model"):
        fit(config, dataset, Validator.of(config.train, config.evaluate), TrainContext(), Start({}))


def test_too_small_epsilon_has_a_clear_message() -> None:
    with pytest.raises(ConfigError, match="no noise of reasonable size"):
        plan(PrivateConfig(epsilon=1e-3), 100, 10, 1)


@pytest.mark.slow
def test_model_card_says_the_spent_budget(
    tmp_path: Path,
    ray_local: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tree = settings().model_dump(mode="json") | {
        "run": {"dir": str(tmp_path / "run")},
        "data": {
            "source": {"kind": "synthetic", "num_users": 60, "num_items": 40},
            "text": {"enabled": False},
        },
        "registry": {"name": "private"},
    }
    tree["evaluate"] |= {"baselines": ["popularity"], "bootstrap": 100}
    tree["model"]["item"]["text"] = False
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    with training_here():
        assert main(["run", "--config", str(tmp_path / "c.yaml")]) == 0
    assert "validation events are private too" in capsys.readouterr().out
    card = (tmp_path / "run" / "bundle" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert (
        "## Differential privacy" in card
        and "at δ 1e-03" in card
        and math.isfinite(card.count("ε"))
    )
    spent = json.loads((tmp_path / "run" / "bundle" / "bundle.json").read_text())["extra"][
        "privacy"
    ]
    assert spent["epsilon"] <= 5.0 and spent["unit"] == "user"
