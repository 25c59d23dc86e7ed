"""The table of members: rankings by members alone and without them, and the reason why each is kept
or dropped.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.plumbing.summary import member_table, signal_table, verdict
from recsys.config import build_config
from recsys.data.histories import Split
from recsys.errors import ConfigError
from recsys.evaluation.ablation import Restricted, ranked_values
from recsys.evaluation.evaluate import evaluate
from recsys.evaluation.member_scores import Shares, member_report, shares, single_line
from recsys.model import FrozenModel
from recsys.report.first_screen import best_baseline
from recsys.report.panels import members_panel, signals_panel
from recsys.training.fresh_model import build_graphs, build_model
from recsys.training.members import refuse_stacked
from tests.handmade import small_model, small_world, write_dataset

pytestmark = pytest.mark.usefixtures("one_thread")

GRANULARITIES = {
    name: {"enabled": True} for name in ("behaviour", "evolution", "item_cf", "user_cf")
}


def settings(**fusion: Any) -> dict[str, Any]:
    return {
        "model": {"width": 8, "max_history": 4, "granularities": GRANULARITIES, "fusion": fusion},
        "train": {"metric": "ndcg@3"},
        "evaluate": {"ks": [3], "bootstrap": 200, "baselines": ["popularity", "ease"]},
    }


def stacked_model(dataset, weights_M: list[float]) -> FrozenModel:
    """A model of two trained and two fitted granularities with the same weights for every length of
    history.
    """
    torch.manual_seed(0)
    config = build_config(settings(stack=True))
    model = build_model(config.model, config.train, dataset, Split.TRAIN)
    model.encoders.stack.weights_GM.copy_(
        torch.tensor(weights_M).expand_as(model.encoders.stack.weights_GM)
    )
    return model.freeze(build_graphs(dataset, Split.TRAIN, model))


def chosen(names: list[str], weights_M: list[float], **more: Any) -> dict[str, Any]:
    """The choices of a stacking."""
    members = {
        n: {"alone": 0.2, "without": 0.25, "weights": [w, w]}
        for n, w in zip(names, weights_M, strict=True)
    }
    dropped = [name for name, weight in zip(names, weights_M, strict=True) if not weight]
    base = {
        "single": "item_cf",
        "is_single": False,
        "validation": 0.3,
        "cross_fitted": 0.28,
        "dropped": dropped,
    }
    return {**base, "members": members, **more}


def test_shares_equal_rankings_by_these_granularities_alone(tmp_path) -> None:
    dataset = small_world(tmp_path)
    model, config = stacked_model(dataset, [1.0, 0.5, 0.7]), build_config(settings(stack=True))
    queries = dataset.histories().queries(Split.TEST)
    found = shares(model, queries, config.train, config.evaluate)
    assert set(found.alone) == {"trained", "behaviour", "evolution", "item_cf", "user_cf"}
    for name in model.names:
        others = tuple(other for other in model.names if other != name)
        np.testing.assert_allclose(
            found.alone[name],
            ranked_values(Restricted(model, (name,)), queries, config.train, config.evaluate),
        )
        np.testing.assert_allclose(
            found.without[name],
            ranked_values(Restricted(model, others), queries, config.train, config.evaluate),
        )
    trained = ranked_values(
        Restricted(model, ("behaviour", "evolution")), queries, config.train, config.evaluate
    )
    np.testing.assert_allclose(found.alone["trained"], trained)
    np.testing.assert_allclose(
        found.without["trained"],
        ranked_values(
            Restricted(model, ("item_cf", "user_cf")), queries, config.train, config.evaluate
        ),
    )


def test_member_without_weight_in_a_group_of_history_lengths_ranks_its_queries_alone(
    tmp_path,
) -> None:
    dataset = small_world(tmp_path)
    queries = dataset.histories().queries(Split.TEST)
    config = build_config(settings(stack=True) | {"train": {"metric": "ndcg@10"}})
    even, uneven = (stacked_model(dataset, [1.0, 0.5, 0.7]) for _ in range(2))
    assert uneven.encoders.stack is not None
    median = int(np.median(queries.histories.lengths_U))
    group = uneven.encoders.stack.groups(torch.tensor([median]))
    uneven.encoders.stack.weights_GM[group, 1] = 0.0
    expected, found = (shares(m, queries, config.train, config.evaluate) for m in (even, uneven))
    np.testing.assert_array_equal(found.alone["item_cf"], expected.alone["item_cf"])
    by_popularity = ranked_values(
        Restricted(uneven, ("item_cf",)), queries, config.train, config.evaluate
    )
    assert (found.alone["item_cf"] != by_popularity).any(), "the world tells them apart"


def test_table_has_no_trained_row_without_closed_form_members(tmp_path) -> None:
    dataset = small_world(tmp_path)
    queries, config = dataset.histories().queries(Split.TEST), build_config(settings())
    found = shares(small_model(dataset), queries, config.train, config.evaluate)
    assert "trained" not in found.without and "behaviour" in found.without


def test_dropped_member_has_validation_figure_and_reason(tmp_path) -> None:
    dataset = small_world(tmp_path)
    weights_M = [0.0, 1.0, 0.4]
    model = stacked_model(dataset, weights_M)
    result = evaluate(
        model,
        dataset,
        build_config(settings(stack=True)),
        refit=False,
        stack=chosen(model.members, weights_M),
    )
    members = result.extras["members"]
    assert list(members["each"]) == ["trained", "behaviour", "evolution", "item_cf", "user_cf"]
    trained = members["each"]["trained"]
    assert not trained["kept"] and trained["why"].startswith("dropped: adding it gains nothing")
    assert trained["alone"] == {"validation": 0.2, "test": None, "interval": None}
    assert members["each"]["evolution"]["why"] == "part of trained, which is dropped"
    kept = members["each"]["item_cf"]
    assert (
        kept["kept"]
        and kept["weight"] == [1.0, 1.0]
        and "falls on validation (-0.0500)" in kept["why"]
    )
    assert kept["without"]["low"] <= kept["without"]["difference"] <= kept["without"]["high"]
    assert members["together"]["test"] == pytest.approx(result.model["ndcg@3"])
    assert set(members["baselines"]) == {"popularity", "ease"}
    assert members["baselines"]["ease"]["alone"]["test"] == pytest.approx(
        result.baselines["ease"]["ndcg@3"]
    )


def test_model_equal_to_its_best_member_is_reported(tmp_path) -> None:
    dataset = small_world(tmp_path)
    weights_M = [0.0, 1.0, 0.0]
    model = stacked_model(dataset, weights_M)
    choices = chosen(model.members, weights_M, is_single=True)
    members = evaluate(
        model, dataset, build_config(settings(stack=True)), refit=False, stack=choices
    ).extras["members"]
    assert single_line(members).startswith("the model is its best single member, item_cf")
    assert members["each"]["item_cf"]["why"].startswith("the model is this member")
    assert members["each"]["item_cf"]["alone"]["test"] == members["together"]["test"]
    assert (
        members["each"]["user_cf"]["why"]
        == "dropped: no sum of members is better than item_cf on validation"
    )


def test_gain_of_a_member_is_paired_difference_to_the_model_without_it() -> None:
    config = build_config(settings())
    whole_B, rest_B = np.array([1.0, 0.5, 0.0, 0.5] * 20), np.array([0.5, 0.5, 0.0, 0.0] * 20)

    class Two:
        names = trained_names = ("behaviour", "evolution")

    found = Shares({"behaviour": rest_B}, {"behaviour": rest_B, "evolution": whole_B}, {})
    report = member_report(
        whole_B, found, Two(), {"behaviour": 0.4, "evolution": 0.0}, {}, {}, config
    )
    behaviour, evolution = report["each"]["behaviour"], report["each"]["evolution"]
    assert (
        behaviour["without"]["difference"] == pytest.approx(0.25)
        and behaviour["without"]["low"] > 0
    )
    assert behaviour["weight"] == [0.4, 0.4] and behaviour["alone"]["validation"] is None
    assert not evolution["kept"] and evolution["why"] == "its weight is zero for every test user"
    assert single_line(report) == ""


def test_panels_show_every_member_and_combination(tmp_path) -> None:
    dataset = small_world(tmp_path)
    weights_M = [0.5, 1.0, 0.0]
    model = stacked_model(dataset, weights_M)
    result = evaluate(
        model,
        dataset,
        build_config(settings(stack=True)),
        refit=False,
        stack=chosen(model.members, weights_M),
    ).to_json()
    panel = members_panel(result, {"ease": "EASE"})
    assert panel is not None and [row["name"] for row in panel["rows"]] == list(
        result["members"]["each"]
    )
    shown = {row["name"] for row in panel["dots"]}
    assert shown == {
        "together",
        "trained",
        "behaviour",
        "evolution",
        "item_cf",
        "popularity",
        "EASE",
    }
    values = [row["value"] for row in panel["dots"]]
    assert values == sorted(values, reverse=True)
    signals = signals_panel(result, {"ease": "EASE"})
    assert signals is not None
    assert sum(row["entry"]["queries"] for row in signals["rows"]) == result["data"]["queries"]


def test_every_query_is_in_the_certificate_once(tmp_path) -> None:
    walks = [
        [((user + item) % 8, 0, 100 + item, Split(max(0, item - 3))) for item in range(6)]
        for user in range(5)
    ]
    dataset = write_dataset(tmp_path, walks, 8)
    model = small_model(dataset)
    config = build_config(settings())
    found = evaluate(model, dataset, config, refit=True).extras["signals"]
    assert [entry["queries"] for entry in found] == [5]
    assert found[0]["label"] == "other combinations", (
        "combinations with fewer than twenty queries are pooled"
    )


def test_console_names_members_and_differing_signals() -> None:
    alone = {"validation": 0.2, "test": 0.1, "interval": [0.0, 0.2]}
    kept = {
        "kind": "fitted",
        "alone": alone,
        "without": {"test": 0.05, "difference": -0.02, "low": -0.03, "high": -0.01},
        "weight": [0.2, 1.0],
        "kept": True,
    }
    gone = {
        "alone": {**alone, "test": None},
        "without": {"test": None},
        "weight": [0.0, 0.0],
        "kept": False,
    }
    figures = {"best_baseline": "ease", "baseline": 0.2, "value": 0.1}
    metrics = {
        "metric": "ndcg@5",
        "members": {
            "metric": "ndcg@5",
            "is_single": False,
            "together": {"test": 0.12},
            "each": {
                "trained": {**gone, "kind": "together"},
                "evolution": {**gone, "kind": "trained"},
                "als": kept,
            },
            "baselines": {"als": {"alone": alone}},
        },
        "signals": [
            {
                "label": "",
                "present": ["friends", "long history (5+)"],
                "missing": [],
                "queries": 1200,
                **figures,
            }
            | {"low": 0.01, "high": 0.02},
            {"label": "", "present": ["friends"], "missing": ["history"], "queries": 30, **figures}
            | {"low": -0.02, "high": -0.01},
            {"label": "other combinations", "present": [], "missing": [], "queries": 3, **figures}
            | {"low": -0.02, "high": 0.01},
        ],
    }
    *lines, dropped, names, better = member_table(metrics).splitlines()
    assert dropped == "dropped, so not measured on test: trained"
    assert better == (
        "on test the model is better without als (ndcg@5 +0.0200, 95 % interval +0.0100 to"
        " +0.0300); members are never chosen on test, so it stays"
    )
    assert names.startswith("a baseline is the published method; the member of the same name (als)")
    assert [line.split() for line in lines] == [
        ["member,", "on", "test", "ndcg@5", "alone", "without", "it", "weight"],
        ["als", "0.1000", "0.0500", "0.20", "to", "1.00"],
        ["als", "0.1000", "baseline"],
        ["together", "0.1200"],
    ]
    lines = signal_table(metrics).splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "long history (5+)",
        "without history",
        "other combinations",
        "every query outside other combinations has: friends",
    ]
    assert (
        lines[1].endswith("better") and lines[2].endswith("worse") and lines[3].endswith("unclear")
    )
    assert signal_table({**metrics, "signals": metrics["signals"][:1]}) == ""


@pytest.mark.parametrize("on_validation", ["ease", "als"])
def test_console_verdict_names_the_best_baseline_of_the_report(on_validation: str) -> None:
    against = {
        "ease": {"difference": 0.1, "low": 0.05, "high": 0.2},
        "als": {"difference": 0, "low": -1, "high": 1},
    }
    comparison = {"best_on_test": "als", "best_on_validation": on_validation, "against": against}
    for best in ("als", "ease"):  # earlier evaluations name the best on validation
        metrics = {"metric": "ndcg@5", "comparison": {**comparison, "best_baseline": best}}
        assert best_baseline(metrics["comparison"]) == "als"
        assert verdict(metrics) == (
            "not clearly better or worse than als, the best baseline: ndcg@5 +0.0000, 95 % interval"
            " -1.0000 to +1.0000"
        )


def test_choosing_lambdas_of_a_stacked_model_is_refused(tmp_path) -> None:
    dataset = small_world(tmp_path)
    with pytest.raises(
        ConfigError,
        match=r"tune.search fusion: the weights of this one are already chosen by stacking",
    ):
        refuse_stacked(
            stacked_model(dataset, [1.0, 1.0, 1.0]).encoders, "tune.search fusion", "this one"
        )
    refuse_stacked(small_model(dataset).encoders, "tune.search fusion", "this one")


@pytest.mark.slow
def test_sparse_matrix_is_made_without_a_warning() -> None:
    """In a separate process, as torch warns only once."""
    code = (
        "import torch\n"
        "from recsys.granularities.user_item_graph import adjacency, spread\n"
        "ends = torch.tensor([0, 1])\n"
        "print(spread(adjacency(ends, ends, torch.ones(2), (2, 2)), torch.eye(2)).tolist())\n"
    )
    command = [sys.executable, "-W", "always", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[[1.0, 0.0], [0.0, 1.0]]"
    assert "Sparse" not in done.stderr
