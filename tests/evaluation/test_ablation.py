"""Ablation by hand: granularities off and alone, compared weights, and the flag of the command."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.plumbing.arguments import UsageError, parse
from pipelines.plumbing.progress import Progress
from pipelines.plumbing.run_folder import RunFolder
from pipelines.steps import retrained_ablation as stage
from recsys.config import build_config
from recsys.data.histories import Split
from recsys.evaluation.ablation import Variant, compare_variants, weight_variants
from recsys.evaluation.evaluate import evaluate
from recsys.evaluation.ranking import rank
from recsys.report.panels import ablation_panel
from tests.evaluation.test_evaluate import Oracle, circle, config
from tests.handmade import small_model, small_world
from tests.training_here import training_here

pytestmark = pytest.mark.usefixtures("one_thread")


def settings(kind: str = "gated", **more: Any) -> Any:
    granularities = {name: {"enabled": True, "weight": 0.25} for name in ("behaviour", "social")}
    model = {"granularities": granularities, "fusion": {"kind": kind}}
    evaluate_section = {"ks": [3], "bootstrap": 100, "baselines": [], **more}
    return build_config(
        {"model": model, "train": {"metric": "ndcg@3"}, "evaluate": evaluate_section}
    )


def test_each_variant_scores_as_its_name_says(tmp_path: Path) -> None:
    dataset = small_world(tmp_path)
    model = small_model(dataset, fusion="gated")
    queries = dataset.histories().queries(Split.TEST)
    parts_BKD, weights_BK, _ = model.contributions(queries)
    z_BKD, present_BK = model.encode(queries)
    section = model.config.model_copy(deep=True)
    section.granularities.behaviour.weight = 0.125
    by_name = {
        (v.group, v.name): v.scorer.scores(queries)
        for v in weight_variants(model, section, queries, 2)
    }
    items_ND = model.item_vectors_ND
    for k, name in enumerate(model.names):
        others = [other for other in range(len(model.names)) if other != k]
        torch.testing.assert_close(by_name["off", name], parts_BKD[:, others].sum(1) @ items_ND.T)
        alone = torch.where(present_BK[:, [k]], parts_BKD[:, k] @ items_ND.T, model.popularity_N)
        torch.testing.assert_close(by_name["alone", name], alone)
    configured = torch.tensor([0.125 if name == "behaviour" else 0.5 for name in model.names])
    even = (z_BKD * present_BK[:, :, None]).sum(1) @ items_ND.T
    torch.testing.assert_close(by_name["fusion", "even"], even)
    weighted = torch.einsum("bk,bkd->bd", configured * present_BK, z_BKD) @ items_ND.T
    torch.testing.assert_close(by_name["fusion", "weighted"], weighted)
    constant = torch.einsum("bk,bkd->bd", weights_BK.mean(0) * present_BK, z_BKD) @ items_ND.T
    torch.testing.assert_close(by_name["fusion", "constant"], constant)
    assert len(by_name) == 2 * len(model.names) + 3


def test_constant_fusion_has_no_gate_to_average() -> None:
    names = [
        (v.group, v.name) for v in weight_variants(Oracle(), settings("weighted").model, None, 1)
    ]  # type: ignore[arg-type]
    assert [name for group, name in names if group == "fusion"] == ["even"]


def test_differences_are_paired_and_have_the_right_sign(tmp_path: Path) -> None:
    dataset = circle(tmp_path)
    built = config(ablation="full", baselines=[])
    built.model.granularities.social.enabled = False
    ranking = rank(Oracle(), dataset.histories().queries(Split.TEST), 3)

    class Halves:
        """Right for the first ten users, silent for the others."""

        def scores(self, queries: Any) -> torch.Tensor:
            return (
                Oracle().scores(queries) * torch.as_tensor(queries.histories.users_U < 10)[:, None]
            )

    found = compare_variants(
        ranking,
        iter([Variant("off", "x", Halves()), Variant("off", "same", Oracle())]),
        built.train,
        built.evaluate,
        built.seed,
    )
    same, half = found["off"]["same"], found["off"]["x"]
    assert (same["value"], same["difference"], same["low"], same["high"], same["p"]) == (
        1.0,
        0.0,
        0.0,
        0.0,
        1.0,
    )
    assert 0.5 <= half["value"] < 0.7 and half["difference"] == pytest.approx(1 - half["value"])
    assert half["low"] > 0 and half["p"] == pytest.approx(2 / 101)
    assert half["interval"][0] <= half["value"] <= half["interval"][1]


def test_metrics_have_ablation_only_if_requested(tmp_path: Path) -> None:
    dataset = small_world(tmp_path)
    model = small_model(dataset)
    plain = settings()
    plain.model = model.config
    assert "ablation" not in evaluate(model, dataset, plain, refit=True).to_json()
    asked = settings(ablation="full")
    asked.model = model.config
    content = json.loads(json.dumps(evaluate(model, dataset, asked, refit=True).to_json()))
    found = content["ablation"]
    assert (
        set(found["weights_changed"]["off"])
        == set(found["weights_changed"]["alone"])
        == set(model.names)
    )
    assert found["full"]["value"] == pytest.approx(content["model"]["ndcg@3"])
    for name, entry in found["weights_changed"]["off"].items():
        assert entry["value"] == pytest.approx(content["granularities"][name]["ndcg@3_without"])
        assert entry["difference"] == pytest.approx(found["full"]["value"] - entry["value"])
    panel = ablation_panel(content)
    assert panel is not None and [card["title"] for card in panel["cards"]] == [
        "Left out",
        "Alone",
        "Other weights",
    ]


def test_flag_is_short_for_the_key() -> None:
    assert parse(["--config", "a.yaml", "--ablate"]).overrides == [("evaluate.ablation", "full")]
    both = parse(["--evaluate.ablation", "retrain", "--ablate"]).overrides
    assert both[-1] == ("evaluate.ablation", "retrain")
    with pytest.raises(UsageError, match="takes no value"):
        parse(["--ablate=yes"])


def test_retrained_variants_have_different_configurations() -> None:
    built = settings("learned")
    plans = {(group, name): changed for group, name, changed in stage._plans(built)}
    assert list(plans) == [
        ("off", "behaviour"),
        ("off", "social"),
        ("alone", "behaviour"),
        ("alone", "social"),
        ("fusion", "weighted"),
        ("fusion", "gated"),
    ]
    assert list(plans["off", "behaviour"].model.granularities.enabled()) == ["social"]
    assert plans["fusion", "gated"].model.fusion.kind == "gated"
    built.model.granularities.social.enabled = False
    assert list(stage._plans(built)) == []
    pair = {name: {"enabled": True} for name in ("behaviour", "item_cf")}
    built = build_config({"model": {"granularities": pair, "fusion": {"kind": "gated"}}})
    found = [(group, name) for group, name, _ in stage._plans(built) if group != "fusion"]
    assert found == [
        ("off", "item_cf"),
        ("alone", "behaviour"),
    ], "a fitted granularity is never alone"


def test_variant_is_trained_once_for_equal_settings(tmp_path: Path) -> None:
    dataset = small_world(tmp_path)
    hashes = {
        stage.variant_hash(changed, dataset) for _, _, changed in stage._plans(settings("learned"))
    }
    assert len(hashes) == 4  # of two granularities, one left out is the other alone
    built = settings("learned")
    first = stage.variant_hash(built, dataset)
    built.evaluate.bootstrap = 200
    assert stage.variant_hash(built, dataset) == first
    built.train.lr = 0.5
    assert stage.variant_hash(built, dataset) != first


def test_variants_of_a_stacked_model_have_separate_models_and_weights_of_members(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is trained as the model itself, once; its members are weighted on validation."""
    monkeypatch.setattr(stage, "ray_session", lambda *_: nullcontext())
    monkeypatch.setattr("pipelines.plumbing.trained.planned_for", lambda config, _: config)
    dataset = small_world(tmp_path / "data")
    own = {"width": 8, "granularities": {"behaviour": {"enabled": True}}}
    built = build_config(
        {
            "run": {"dir": str(tmp_path)},
            "model": {
                "width": 8,
                "granularities": {
                    "behaviour": {"enabled": True},
                    "popularity": {"enabled": True},
                    "apart_1": {"kind": "apart", "enabled": True, "model": own},
                },
                "fusion": {"kind": "learned", "stack": True},
            },
            "train": {"metric": "ndcg@3", "epochs": 2, "use_gpu": "no"},
            "evaluate": {"ks": [3], "ablation": "retrain"},
        }
    )
    folder = RunFolder(tmp_path, Progress(None))
    queries = dataset.histories().queries(Split.TEST)
    with training_here() as trainings:
        found = {(v.group, v.name): v.scorer for v in _retrained(built, folder, dataset)}
        assert {name: set(scorer.members) for name, scorer in found.items()} == {
            ("off", "popularity"): {"trained", "apart_1"},
            ("off", "apart_1"): {"trained", "popularity"},
            ("alone", "behaviour"): {"trained"},
            ("fusion", "weighted"): {"trained", "popularity", "apart_1"},
            ("fusion", "gated"): {"trained", "popularity", "apart_1"},
        }
        for scorer in found.values():
            # before stacking, all scales are 1
            assert (scorer.encoders.stack.scales_M != 1).all()
        assert sum("apart/apart_1" in where for where in trainings) == 3
        number = len(trainings)
        assert number == 5 + 3
        for variant in _retrained(built, folder, dataset):
            same = found[variant.group, variant.name].scores(queries)
            again = variant.scorer.scores(queries)  # item texts are stored in float16
            torch.testing.assert_close(again, same, rtol=1e-2, atol=1e-3)
        assert len(trainings) == number, "they are read from the run folder"


def _retrained(config: Any, folder: RunFolder, dataset: Any) -> list[Any]:
    return list(stage.retrained_variants(config, folder, dataset))
