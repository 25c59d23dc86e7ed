"""Models with only closed-form granularities: nothing is trained, everything else is as for other
models.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pipelines.cli import main
from recsys.config import Config, build_config
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.evaluation.validation import Validator
from recsys.model import FrozenModel
from recsys.serving.bundles import read_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_requests
from recsys.training.checkpoint import load_trained, save_trained
from recsys.training.closed_form import choose_weights, sample_queries
from recsys.training.context import TrainContext
from recsys.training.phases import fit
from recsys.training.selected import selected_model
from tests.planted import planted_dataset
from tests.training.test_training import keep_checkpoints
from tests.training_here import training_here
from tests.two_processes import together

MEMBERS = {
    "item_cf": {"rank": 32, "regularisation": 20.0},
    "user_cf": {"rank": 32, "neighbours": 20},
}


def settings(dataset: PreparedDataset, kind: str = "learned", **model: Any) -> Config:
    granularities = {name: {"enabled": True, **keys} for name, keys in MEMBERS.items()}
    return build_config(
        {
            "data": {"dir": dataset.root},
            "model": {"granularities": granularities, "fusion": {"kind": kind}, **model},
            "train": {"metric": "ndcg@10"},
        }
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return planted_dataset(
        tmp_path_factory.mktemp("world"),
        {"collaborative": 1.0},
        num_users=200,
        num_items=80,
        events_per_user=10.0,
    )


@pytest.mark.parametrize("kind", ["weighted", "learned", "gated"])
@pytest.mark.parametrize("unit_vectors", [False, True])
def test_closed_form_model_is_fitted_and_validated_once(
    dataset: PreparedDataset, tmp_path: Path, kind: str, unit_vectors: bool
) -> None:
    config, seen = settings(dataset, kind, unit_vectors=unit_vectors), []
    result = fit(
        config,
        dataset,
        Validator.of(config.train, config.evaluate),
        TrainContext(report=lambda values, _: seen.append(values)),
    )
    model, queries = result.frozen, dataset.histories().queries(Split.TEST)
    assert model.names == ["item_cf", "user_cf"] and model.trained_names == []
    assert model.items.vectors_SD.shape == (80, 0) and model.item_vectors_ND.shape[1] == 64
    assert result.best_epoch == 0 and [(report["epoch"], "loss" in report) for report in seen] == [
        (0, False)
    ]
    found, popular = Validator("ndcg@10", True, 512)(model, queries), _popularity(model, dataset)
    assert found.mean() > 1.3 * popular, "members find the communities"
    save_trained(tmp_path / "model", result)
    read = load_trained(tmp_path / "model")
    assert torch.equal(read.frozen.scores(queries), model.scores(queries))
    assert not torch.equal(
        selected_model(config, dataset, read).scores(queries), model.scores(queries)
    )


def _popularity(model: FrozenModel, dataset: PreparedDataset) -> float:
    class Popular:
        def scores(self, queries: Any) -> torch.Tensor:
            return model.popularity_N.expand(len(queries), -1).clone()

    return float(
        Validator("ndcg@10", True, 512)(Popular(), dataset.histories().queries(Split.TEST)).mean()
    )


def test_search_for_weights_starts_with_the_best_member_alone(dataset: PreparedDataset) -> None:
    config = settings(dataset)
    frozen = fit(
        config, dataset, Validator.of(config.train, config.evaluate), TrainContext()
    ).frozen
    weights, asked = frozen.encoders.fitted_weights, list[list[float]]()

    def metric() -> float:
        asked.append(weights.tolist())
        return 2.0 if asked[-1] == [0.0, 1.0] else 1.0

    choose_weights(frozen, metric, sample_queries(dataset, Split.VALID))
    assert weights.tolist() == [0.0, 1.0], "the better one alone, as the other adds nothing"
    assert asked[1:3] == [[1.0, 0.0], [0.0, 1.0]] and len(asked) > 6


def test_resumed_equals_uninterrupted(dataset: PreparedDataset, tmp_path: Path) -> None:
    config = settings(dataset)
    whole = fit(
        config,
        dataset,
        Validator.of(config.train, config.evaluate),
        TrainContext(report=keep_checkpoints(tmp_path, None)),
    )
    resumed = fit(
        config,
        dataset,
        Validator.of(config.train, config.evaluate),
        TrainContext(resume_from=tmp_path / "select-0"),
    )
    assert [report["ndcg@10"] for report in resumed.history] == [
        report["ndcg@10"] for report in whole.history
    ]
    assert all(torch.equal(resumed.weights[name], tensor) for name, tensor in whole.weights.items())


def _worker(rank: int, world: int, root: str, out: str, config: dict[str, Any]) -> None:
    read = build_config(config)
    result = fit(
        read,
        PreparedDataset(root),
        Validator.of(read.train, read.evaluate),
        TrainContext(rank, world),
    )
    torch.save({"weights": result.weights, "history": result.history}, f"{out}/{rank}.pt")


@pytest.mark.slow
def test_two_workers_give_the_result_of_one(dataset: PreparedDataset, tmp_path: Path) -> None:
    config = settings(dataset)
    one = fit(config, dataset, Validator.of(config.train, config.evaluate), TrainContext())
    together(_worker, tmp_path, dataset.root, str(tmp_path), config.model_dump(mode="json"))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["history"][0]["ndcg@10"] == pytest.approx(one.history[0]["ndcg@10"])
        for name, tensor in one.weights.items():
            torch.testing.assert_close(found["weights"][name], tensor)


def test_run_registers_a_closed_form_model_that_serves(
    tmp_path: Path, ray_local: None, capsys: pytest.CaptureFixture[str]
) -> None:
    tree: dict[str, Any] = {
        "run": {"dir": str(tmp_path / "run"), "name": "fitted"},
        "data": {
            "source": {"kind": "synthetic", "num_users": 60, "num_items": 40, "num_partitions": 1},
            "text": {"enabled": False},
            "quarantine": {"max_share": 0.5},
            "num_shards": 1,
        },
        "model": {"granularities": {"item_cf": {"enabled": True, "rank": 16}}},
        "train": {"metric": "ndcg@5", "threads": 1},
        "evaluate": {
            "ks": [5],
            "baselines": ["popularity", "ease"],
            "bootstrap": 100,
            "num_examples": 2,
        },
        "registry": {"name": "fitted"},
        "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    with training_here() as trained:
        assert main(["run", "--config", str(tmp_path / "c.yaml")]) == 0
    assert trained == [str(tmp_path / "run")]
    printed = capsys.readouterr()
    assert (
        "no granularity is trained: chose the weights of the closed-form granularities by ndcg@5"
        in printed.out + printed.err
    )
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["granularities"]["item_cf"]["weight"] > 0
    assert "Training loss" not in (tmp_path / "run/report.html").read_text()
    words = [
        "models:/fitted@challenger",
        str(tmp_path / "model"),
        "--tracking.uri",
        tree["tracking"]["uri"],
    ]
    assert main(["pull", *words]) == 0
    bundle = read_bundle(next((tmp_path / "model").rglob("bundle.json")).parent)
    requests = [{"user_id": bundle.user_ids[0], "k": 5}, {"user_id": "nobody", "k": 5}]
    known, popular = Recommender(bundle).recommend(parse_requests(requests))
    assert known.scores == pytest.approx(np.sum(list(known.shares.values()), axis=0).tolist())
    assert any(known.shares["item_cf"]) and not popular.shares
