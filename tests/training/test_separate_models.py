"""Separately trained models as members: through every command, and compared with the same models
alone.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pipelines.cli import main
from recsys.config import build_config, load_config
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.errors import ConfigError
from recsys.evaluation import stacking
from recsys.model import FrozenModel
from recsys.serving.bundles import read_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_requests
from recsys.training.checkpoint import load_trained
from recsys.training.selected import assemble
from recsys.training.separate_models import own_config, own_weights
from tests.encoded import encoded_and_expected
from tests.training_here import training_here

DAY = 86_400
OWN = {
    "kind": "apart",
    "enabled": True,
    "model": {
        "width": 8,
        "item": {"text": False},
        "granularities": {"evolution": {"enabled": True, "cell": "gru"}},
    },
    "train": {"epochs": 8, "lr": 0.02},
    "seed": 3,
}


def events(path: Path, days: range) -> None:
    lines = [
        f"u{u:02},i{(u + 2 * day + u * day % 3) % 15:02},{(day + 1) * DAY}"
        for u in range(30)
        for day in days
    ]
    path.write_text("user_id,item_id,timestamp\n" + "\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Path:
    """A registered model of Monday's events, with a separately trained member."""
    folder = tmp_path_factory.mktemp("apart")
    events(folder / "1-monday.csv", range(8))
    tree: dict[str, Any] = {
        "run": {"dir": str(folder / "monday")},
        "data": {
            "source": {"kind": "canonical", "events": [str(folder / "[0-9]*.csv")]},
            "text": {"enabled": False},
            "num_shards": 1,
        },
        "model": {
            "width": 8,
            "item": {"text": False},
            "fusion": {"stack": True},
            "granularities": {
                "evolution": {"enabled": True},
                "item_cf": {"enabled": True, "regularisation": 1e6, "recency": 0, "itself": True},
                "gru": OWN,
            },
        },
        "train": {
            "epochs": 3,
            "batch_size": 8,
            "metric": "ndcg@5",
            "threads": 1,
            "warmup": 0.0,
            "lr": 0.01,
            "refit": True,
            "final": True,
        },
        "evaluate": {
            "ks": [5],
            "baselines": ["popularity"],
            "bootstrap": 100,
            "num_examples": 0,
            "ablate": False,
        },
        "registry": {"name": "pocket", "alias": "champion"},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        "update": {"epochs": 2},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    # so few users cannot show that a sum is better than its best member
    with pytest.MonkeyPatch.context() as patch, training_here() as trained:
        patch.setattr("recsys.evaluation.stacking._PULLS", (0.0,))
        assert main(["run", "--config", str(folder / "c.yaml")]) == 0
    assert trained[:2] == [str(folder / "monday"), str(folder / "monday/apart/gru")]
    return folder


def opened(folder: Path, name: str) -> tuple[PreparedDataset, Any]:
    return PreparedDataset(str(folder / name / "dataset")), load_trained(folder / name / "model")


def test_member_scores_as_the_separately_trained_model(world: Path) -> None:
    dataset, trained = opened(world, "monday")
    config = load_config(world / "c.yaml")
    queries = dataset.histories().queries(Split.TEST)
    alone = assemble(
        own_config(config, "gru"),
        dataset,
        Split.VALID,
        own_weights(trained.weights, "gru"),
        trained.choices["apart"]["gru"]["choices"],
    )
    trained.choices["stack"]["members"]["gru"]["weights"] = [0.5] * 7
    whole = assemble(config, dataset, Split.VALID, trained.weights, trained.choices)
    parts = whole.unit_contributions(queries)
    place = whole.names.index("gru")
    torch.testing.assert_close(parts.each(whole.item_vectors_ND)[:, place], alone.scores(queries))
    read = FrozenModel.from_tensors(whole.config, whole.sizes, whole.tensors())
    torch.testing.assert_close(read.scores(queries), whole.scores(queries))
    items = torch.arange(dataset.num_items).expand(len(queries), -1)
    shares_BKR = read.contributions(queries).shares(read.item_vectors_ND, items)
    torch.testing.assert_close(
        shares_BKR.sum(1).float(), read.scores(queries), atol=1e-4, rtol=1e-4
    )
    refitted, chosen = (
        own_weights(found, "gru")["model.tower.id_ND.weight"]
        for found in (trained.weights, trained.selected)
    )
    assert not torch.equal(refitted, chosen), "the weights of before the refit are kept too"


def test_table_of_members_names_the_separate_model(world: Path) -> None:
    members = json.loads((world / "monday/metrics.json").read_text(encoding="utf-8"))["members"][
        "each"
    ]
    kinds = {name: entry["kind"] for name, entry in members.items()}
    assert (
        kinds["trained"] == "together" and kinds["item_cf"] == "fitted" and kinds["gru"] == "apart"
    )


def test_separate_model_is_served_and_trained_on_all_events(world: Path) -> None:
    bundle = read_bundle(world / "monday/bundle")
    assert "gru" in bundle.model.names
    final, measured = load_trained(world / "monday/final"), load_trained(world / "monday/model")
    key = "apart.gru.model.tower.id_ND.weight"
    has_weight = any(measured.choices["stack"]["members"]["gru"]["weights"])
    assert torch.equal(final.weights[key], measured.weights[key]) != has_weight
    recommender = Recommender(read_bundle(world / "monday/bundle"))
    [answer] = recommender.recommend(parse_requests([{"user_id": "u01", "k": 3}]))
    assert len(answer.item_ids) == 3


def test_update_continues_from_the_weights_of_the_separate_model(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events(world / "2-tuesday.csv", range(8, 10))
    with training_here() as trained:
        assert (
            main(["update", "--config", str(world / "c.yaml"), "--run.dir", str(world / "tuesday")])
            == 0
        )
    assert trained[:2] == [str(world / "tuesday"), str(world / "tuesday/apart/gru")]
    assert "training from scratch" not in capsys.readouterr().out
    before, after = opened(world, "monday")[1], opened(world, "tuesday")[1]
    old, new = (
        own_weights(found.weights, "gru")["model.tower.id_ND.weight"] for found in (before, after)
    )
    assert old.shape == new.shape and not torch.equal(old, new)
    fresh = np.linalg.norm(old.numpy())
    assert np.linalg.norm((new - old).numpy()) < 0.8 * fresh, (
        "near the weights of the parent, not from scratch"
    )


@pytest.mark.slow
def test_update_trains_separate_model_from_scratch_if_parent_dropped_it(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacking, "_PULLS", (1.0,))  # the model is its best member
    events(tmp_path / "1-monday.csv", range(8))
    (tmp_path / "c.yaml").write_text(
        (world / "c.yaml").read_text(encoding="utf-8").replace(str(world), str(tmp_path))
    )
    words = [
        "--config",
        str(tmp_path / "c.yaml"),
        "--model.granularities.item_cf.regularisation",
        "10",
    ]
    with training_here():
        assert main(["run", *words]) == 0
        assert not any(opened(tmp_path, "monday")[1].choices["stack"]["members"]["gru"]["weights"])
        events(tmp_path / "2-tuesday.csv", range(8, 10))
        capsys.readouterr()
        assert main(["update", *words, "--run.dir", str(tmp_path / "tuesday")]) == 0
    assert (
        "training from scratch, because the parent has no weights for it: gru"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            {**OWN, "model": {"granularities": {"item_cf": {"enabled": True}}}},
            "item_cf is in closed form",
        ),
        ({**OWN, "model": {"width": 2}}, "width"),
        ({**OWN, "model": {}}, "no granularity is enabled"),
        ({**OWN, "rank": 3}, "unknown key rank"),
    ],
)
def test_errors_name_the_key(own: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config({"model": {"granularities": {"evolution": {"enabled": True}, "gru": own}}})


def test_separate_model_without_stacking_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = {
        "run": {"dir": str(tmp_path)},
        "model": {"granularities": {"evolution": {"enabled": True}, "gru": OWN}},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    assert main(["run", "--config", str(tmp_path / "c.yaml"), "--dry-run"]) == 2
    assert (
        "model.granularities.gru gets its weight from stacking; set model.fusion.stack true"
        in capsys.readouterr().err
    )


def test_separate_model_declares_its_graph_form(world: Path) -> None:
    _, trained = opened(world, "monday")
    trained.choices["stack"]["members"]["gru"]["weights"] = [0.5] * 7
    whole = assemble(
        load_config(world / "c.yaml"),
        opened(world, "monday")[0],
        Split.VALID,
        trained.weights,
        trained.choices,
    )
    assert "gru" in whole.states
    bundle = replace(read_bundle(world / "monday/bundle"), model=whole)
    torch.testing.assert_close(*encoded_and_expected(bundle), atol=1e-4, rtol=0)
