"""Fusion weights from feedback: known weights are recovered, skips lower granularities, nothing
else changes.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recsys.config import FusionConfig
from recsys.errors import ArtifactError, ConfigError, DataError, SourceError
from recsys.fusion import FUSIONS, Fusion
from recsys.model import FrozenModel
from recsys.registry.parent import open_parent, write_refitted
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.feedback import Feedback, gather, read_feedback
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_requests
from recsys.training.refit_fusion import Evidence, refit_fusion
from tests.handmade import small_model, small_world

REWARDS = {"click": 1.0, "purchase": 3.0, "skip": -1.0}


def fusion_of(kind: str, weights: list[float]) -> Fusion:
    torch.manual_seed(0)
    return FUSIONS[kind](FusionConfig(kind=kind), weights, 4)


def evidence(
    weights: list[float], rows: int = 20_000, intercept: float = -1.0, seed: int = 0
) -> Evidence:
    """Feedback with P(like) = σ(intercept + Σ λ*_k s_k); granularity 1 is missing for a third of
    the rows.
    """
    random = np.random.default_rng(seed)
    shares_RK = random.normal(size=(rows, len(weights))) * np.array([0.5, 2.0, 1.0])[: len(weights)]
    present_RK = np.ones_like(shares_RK, dtype=bool)
    present_RK[: rows // 3, 1] = False
    shares_RK = shares_RK * present_RK
    liked_R = random.random(rows) < 1 / (1 + np.exp(-(intercept + shares_RK @ np.array(weights))))
    return Evidence(
        torch.tensor(shares_RK),
        torch.tensor(present_RK),
        torch.zeros(rows, len(weights), dtype=torch.float64),
        torch.tensor(liked_R, dtype=torch.float64),
        torch.ones(rows, dtype=torch.float64),
    )


@pytest.mark.parametrize("kind", ["learned", "weighted"])
def test_known_weights_are_recovered_up_to_a_common_factor(kind: str) -> None:
    truth = np.array([1.6, 0.4, 1.0])
    fusion = fusion_of(kind, [0.5, 0.5, 0.5])
    found = refit_fusion(fusion, evidence(truth.tolist()), prior_rows=1.0, seed=0)
    assert found.better and found.loss_after < found.loss_before - 0.01
    assert found.after_K.sum() == pytest.approx(1.5), "a factor changes no ranking: the sum stays"
    # standard errors are near 0.02 for a weight of 1 at 16,000 rows
    np.testing.assert_allclose(found.after_K / found.after_K.sum(), truth / truth.sum(), atol=0.03)
    fusion.load_state_dict(fusion.refitted(found.after_K), strict=True)
    used = (
        fusion.lambdas(torch.zeros(1, 3, 4), torch.ones(1, 3, dtype=torch.bool))[0].detach().numpy()
    )
    np.testing.assert_allclose(used / used.sum(), truth / truth.sum(), atol=0.03)
    assert kind == "learned" or used.max() <= 1


def test_useless_weights_become_zero_and_never_negative() -> None:
    found = refit_fusion(
        fusion_of("learned", [0.5, 0.5, 0.5]), evidence([2.0, -1.0, 1.0]), prior_rows=1.0, seed=0
    )
    assert found.better and found.after_K[1] == 0 and (found.after_K >= 0).all()


def test_the_prior_of_a_gate_is_recovered() -> None:
    fusion = fusion_of("gated", [0.5, 0.5, 0.5])
    made = evidence([0.0, 0.0, 0.0])
    truth_K = torch.tensor([1.0, -0.5, 0.0], dtype=torch.float64).log_softmax(0)
    scores_R = (fusion.opened(made.gate_RK, truth_K, made.present_RK) * made.shares_RK).sum(1)
    liked_R = (
        torch.rand(len(made), generator=torch.Generator().manual_seed(1)) < torch.sigmoid(scores_R)
    ).double()
    found = refit_fusion(
        fusion,
        Evidence(*(made.shares_RK, made.present_RK, made.gate_RK, liked_R, made.counts_R)),
        1.0,
        0,
    )
    assert found.better
    np.testing.assert_allclose(found.after_K.softmax(0), truth_K.softmax(0), atol=0.05)


def test_skips_lower_the_granularity_that_ranked_the_items() -> None:
    """Items with high scores from granularity 0 are skipped; other feedback follows the current
    weights.
    """
    made = evidence([0.5, 0.5, 0.5])
    asked_R = made.shares_RK[:, 0] > 0.5
    annoyed = Evidence(
        made.shares_RK, made.present_RK, made.gate_RK, made.liked_R * ~asked_R, made.counts_R
    )
    fusion = fusion_of("learned", [0.5, 0.5, 0.5])
    calm, after = (refit_fusion(fusion, kind, 1.0, 0).after_K for kind in (made, annoyed))
    assert after[0] < 0.5 * calm[0] and after[1] > calm[1] and after[2] > calm[2]


def test_a_purchase_counts_more_than_a_click() -> None:
    made = evidence([0.5, 0.5, 0.5])
    bought = torch.where((made.liked_R > 0) & (made.shares_RK[:, 2] > 1), 5.0, 1.0).double()
    fusion = fusion_of("learned", [0.5, 0.5, 0.5])
    heavier = Evidence(made.shares_RK, made.present_RK, made.gate_RK, made.liked_R, bought)
    assert (
        refit_fusion(fusion, heavier, 1.0, 0).after_K[2]
        > refit_fusion(fusion, made, 1.0, 0).after_K[2]
    )


def test_prior_keeps_current_weights_in_proportion_to_its_rows() -> None:
    fusion = fusion_of("learned", [0.5, 0.5, 0.5])
    made = evidence([1.6, 0.4, 1.0], rows=500)
    moved = [
        float((refit_fusion(fusion, made, rows, 0).after_K - 0.5).abs().sum())
        for rows in (0.0, 100.0, 1e4, 1e8)
    ]
    assert moved == sorted(moved, reverse=True) and moved[-1] < 1e-3


def test_uninformative_feedback_changes_nothing() -> None:
    """In ten data sets the current weights are the truth: at most one result may be significantly
    better.
    """
    fusion = fusion_of("learned", [0.5, 0.5, 0.5])
    found = [
        refit_fusion(fusion, evidence([0.5, 0.5, 0.5], 2000, seed=seed), 100.0, seed).better
        for seed in range(10)
    ]
    assert sum(found) <= 2
    deaf = evidence([-1.0, -1.0, -1.0], 2000)
    assert not refit_fusion(fusion, deaf, 0.0, 0).better, "no weight above zero helps"


# -------------------------------------------------------------------------------- files and bundles


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = tmp_path_factory.mktemp("feedback")
    dataset = small_world(world / "dataset")
    frozen = small_model(dataset, fusion="learned")
    training = {
        f"model.encoders.{name}": tensor for name, tensor in frozen.encoders.state_dict().items()
    }
    write_bundle(world / "bundle", frozen, dataset, {"metrics": {"ndcg@20": 0.5}}, training)
    return world / "bundle"


def written(path: Path, rows: list[dict[str, object]]) -> list[str]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(path)]


def test_evidence_equals_the_scores_of_the_model(folder: Path, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"user_id": "u0", "item_id": "i9", "event_type": "click"},
        {"user_id": "u0", "item_id": "i5", "event_type": "skip", "history": ["i7"]},
        {"user_id": "newcomer", "item_id": "i1", "event_type": "purchase", "history": ["i2", "i3"]},
        {"user_id": "u3", "item_id": "i1", "event_type": "skip"},
        {"user_id": "newcomer", "item_id": "i1", "event_type": "click"},
        {"user_id": "u0", "item_id": "mystery", "event_type": "click"},
    ]
    feedback = read_feedback(written(tmp_path / "f.jsonl", rows * 20), REWARDS, 0.0)
    recommender = Recommender(read_bundle(folder))
    found = gather(recommender, feedback)
    assert (found.num_unknown_items, found.num_unknown_users) == (20, 20)
    assert len(found.evidence) == 80
    assert found.evidence.liked_R[:4].tolist() == [1, 0, 1, 0] and found.evidence.counts_R[
        :4
    ].tolist() == [1, 1, 3, 1]
    lambdas_K = torch.nn.functional.softplus(
        recommender.model.encoders.fusion.raw_K.detach()
    ).double()
    for row, shares_K in zip(rows[:4], found.evidence.shares_RK, strict=False):
        request = {"user_id": row["user_id"], "k": 12, "exclude_seen": False}
        if "history" in row:
            request["history"] = row["history"]
        answer = recommender.recommend(parse_requests([request]))[0]
        position = answer.item_ids.index(str(row["item_id"]))
        reported = [answer.shares[name][position] for name in recommender.names]
        assert (shares_K * lambdas_K).tolist() == pytest.approx(reported, abs=1e-5)
    told_of = [
        name
        for name, there in zip(recommender.names, found.evidence.present_RK[3], strict=True)
        if there
    ]
    assert told_of == ["social"], "u3 has friends only"


def test_refit_changes_only_the_fusion(folder: Path, tmp_path: Path) -> None:
    parent = open_parent(str(folder), "")
    values_K = 0.1 + 0.1 * torch.arange(len(parent.bundle.model.names), dtype=torch.float64)
    changed = parent.bundle.model.encoders.refitted(values_K)
    write_refitted(
        parent, tmp_path / "next", changed, {"feedback_log_loss": 0.5}, {"fusion": {"rows": 3}}
    )
    before, after = read_bundle(folder), read_bundle(tmp_path / "next")
    old, new = before.model.tensors(), after.model.tensors()
    assert [name for name in old if not torch.equal(old[name], new[name])] == [
        "encoders.fusion.raw_K"
    ]
    weights = torch.nn.functional.softplus(new["encoders.fusion.raw_K"])
    torch.testing.assert_close(weights, values_K.float())
    training = load_file(tmp_path / "next/training.safetensors")
    assert torch.equal(training["model.encoders.fusion.raw_K"], new["encoders.fusion.raw_K"])
    assert after.info.metrics == {"feedback_log_loss": 0.5} and after.info.extra["fusion"] == {
        "rows": 3
    }
    assert after.info.extra["parent"]["uri"] == str(folder) and after.info.files["users.parquet"]
    write_refitted(parent, folder, changed, {}, {})  # in place
    assert isinstance(read_bundle(folder).model, FrozenModel)


def test_bundle_without_training_weights_is_refused(tmp_path: Path) -> None:
    dataset = small_world(tmp_path / "dataset")
    write_bundle(tmp_path / "bundle", small_model(dataset), dataset, {})
    with pytest.raises(ArtifactError, match=r"no training weights .*recsys register"):
        open_parent(str(tmp_path / "bundle"), "").training()


def test_bad_feedback_names_the_fix(folder: Path, tmp_path: Path) -> None:
    row = {"user_id": "u0", "item_id": "i1", "event_type": "click"}
    with pytest.raises(ConfigError, match="update.feedback: expected files"):
        read_feedback([], REWARDS, 0.0)
    with pytest.raises(
        ConfigError, match="update.rewards: the reward of skip must be a finite number"
    ):
        read_feedback(["x"], {"click": 1.0, "skip": 0.0}, 0.0)
    with pytest.raises(SourceError, match="nowhere"):
        read_feedback([str(tmp_path / "nowhere.csv")], REWARDS, 0.0)
    (tmp_path / "empty.csv").write_text("user_id,item_id,event_type\n")
    with pytest.raises((DataError, SourceError), match="empty.csv"):
        read_feedback([str(tmp_path / "empty.csv")], REWARDS, 0.0)
    with pytest.raises(
        ConfigError,
        match="no reward for the event type 'wink'; there are rewards for click, purchase",
    ):
        read_feedback(
            written(tmp_path / "a.jsonl", [row, row | {"event_type": "wink"}]), REWARDS, 0.0
        )
    with pytest.raises(DataError, match="1 of 2 rows are bad"):
        read_feedback(written(tmp_path / "b.jsonl", [row, row | {"item_id": ""}]), REWARDS, 0.0)
    (tmp_path / "c.csv").write_text("user_id,item_id,event_type,history\nu0,i1,click,i2 i3\n")
    with pytest.raises(DataError, match="history has the type .*expected lists"):
        read_feedback([str(tmp_path / "c.csv")], REWARDS, 0.0)

    recommender = Recommender(read_bundle(folder))
    rewards = np.ones(60)
    with pytest.raises(
        DataError, match="0 of 60 rows have a user and an item that the model knows"
    ):
        gather(recommender, Feedback(["zoe"] * 60, ["i1"] * 60, [None] * 60, rewards, 0))
    with pytest.raises(DataError, match="every row has an event type that means liked"):
        gather(recommender, Feedback(["u0"] * 60, ["i1"] * 60, [None] * 60, rewards, 0))
