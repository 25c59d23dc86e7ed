"""`recsys tune --tune.search fusion`: the cache ranks as the evaluation does, and only gains on
held-out users count.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
import yaml

from pipelines.cli import main
from pipelines.plumbing.opened_model import ORIGIN
from pipelines.plumbing.progress import Progress
from pipelines.plumbing.run_folder import RunFolder
from recsys.config import Config, FusionSearchConfig, build_config
from recsys.contributions import Contributions
from recsys.data.batches import Batch
from recsys.data.bounded import evaluated_users_V
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Histories, Queries, Split
from recsys.errors import ArtifactError, ConfigError
from recsys.evaluation.metrics import list_metrics, ndcg_at, parse_metric
from recsys.evaluation.ranking import countable, rank
from recsys.evaluation.validation import Validator
from recsys.model import FrozenModel
from recsys.registry.resolve import resolve
from recsys.serving.bundles import read_bundle
from recsys.storage.filesystems import read_bytes
from recsys.storage.mirror import upload
from recsys.training.checkpoint import TrainResult, save_trained
from recsys.training.context import TrainContext
from recsys.training.fresh_model import build_graphs, build_model
from recsys.training.phases import fit
from tests.handmade import leave_last, write_dataset
from tune.confirmed_weights import Found, confirmed
from tune.fusion_report import render_report
from tune.fusion_search import LISTS, Trials, cross_fit, known_points, search
from tune.pareto import choose, front
from tune.score_cache import ListMeter, ScoreCache, build_cache
from tune.weight_search import check
from tune.weights import WeightSpace, refitted

pytestmark = pytest.mark.usefixtures("one_thread")
Captured = pytest.CaptureFixture[str]

NUM_ITEMS, NUM_USERS = 40, 60


def world(folder: Path, valid: bool = True) -> PreparedDataset:
    """Users walk around a circle of items by steps of one; friends are drawn at random."""
    random = np.random.default_rng(0)
    walks = [
        [int(start + step) % NUM_ITEMS for step in range(length)]
        for start, length in zip(
            random.integers(0, NUM_ITEMS, NUM_USERS), random.integers(5, 9, NUM_USERS), strict=True
        )
    ]
    histories = [leave_last(*walk) for walk in walks]
    if not valid:
        histories = [
            [(*event[:3], Split.TRAIN if event[3] == Split.VALID else event[3]) for event in walk]
            for walk in histories
        ]
    friends = [(user, int(random.integers(user))) for user in range(1, NUM_USERS, 2)]
    return write_dataset(folder, histories, NUM_ITEMS, friends=friends, text_width=8)


def settings(kind: str = "weighted", **granularities: dict[str, Any]) -> Config:
    chosen = granularities or {
        "evolution": {},
        "collaborative": {"layers": 2},
        "social": {},
        "item_cf": {"rank": 8},
    }
    return build_config(
        {
            "model": {
                "width": 16,
                "max_history": 10,
                "unit_vectors": True,
                "granularities": {name: {"enabled": True, **keys} for name, keys in chosen.items()},
                "fusion": {"kind": kind, "signal_dropout": 0.0},
            },
            "train": {
                "epochs": 15,
                "batch_size": 16,
                "lr": 0.02,
                "metric": "ndcg@5",
                "patience": 15,
            },
            "evaluate": {"ks": [5]},
            "tune": {"search": "fusion"},
        }
    )


def frozen_model(dataset: PreparedDataset, kind: str) -> FrozenModel:
    """A model with random weights; some users have no friends."""
    torch.manual_seed(0)
    config = settings(kind)
    model = build_model(config.model, config.train, dataset, Split.TRAIN)
    with torch.no_grad():
        for parameter in model.encoders.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.freeze(build_graphs(dataset, Split.TRAIN, model))


def trials_of(frozen: FrozenModel, dataset: PreparedDataset, best: int = 500) -> Trials:
    queries, _, _ = countable(dataset.histories().queries(Split.VALID), True)
    cache = build_cache(frozen, queries, True, best)
    meter = ListMeter.of(frozen, dataset.item_counts_N(Split.TRAIN))
    return Trials(cache, WeightSpace.of(frozen, cache), meter, parse_metric("ndcg@5"))


# -------------------------------------------------------------------------------------------- cache


@pytest.mark.parametrize("kind", ["weighted", "learned", "gated"])
@pytest.mark.parametrize("best", [6, 500])
def test_cache_ranks_as_the_evaluation_does(tmp_path: Path, kind: str, best: int) -> None:
    """Item by item, for any weights: zeros, one granularity alone, and users without any
    contribution left.
    """
    dataset = world(tmp_path)
    frozen = frozen_model(dataset, kind)
    trials = trials_of(frozen, dataset, best)
    space, cache = trials.space, trials.cache
    random = np.random.default_rng(1)
    whole = 0
    for point in [*known_points(space.shares_K), *random.dirichlet(np.ones(4), 6)]:
        values_K = space.today_K if point is None else space.values(point)
        lists, ranked_whole = cache.lists(space.weights(values_K, cache.present_QK), 5)
        with refitted(frozen.encoders, space.for_model(frozen.encoders, values_K)):
            ranking = rank(frozen, cache.queries, 5)
        assert lists.items_QL.tolist() == ranking.items_BK.tolist()
        assert lists.hits_QL.tolist() == ranking.hits_BK.tolist()
        measured = trials.measure(point)
        assert (
            measured.values_Q.tolist()
            == ndcg_at(ranking.hits_BK, ranking.num_targets_B, 5).tolist()
        )
        vectors_ND = frozen.item_vectors_ND.numpy()
        expected = list_metrics(
            ranking.items_BK, dataset.item_counts_N(Split.TRAIN), vectors_ND, [5]
        )
        for name in LISTS:
            assert measured.lists[name] == pytest.approx(
                float(np.mean(expected[f"{name}@5"])), abs=1e-5
            )
        whole += ranked_whole
    assert cache.whole_Q.all() == (best == 500)
    assert whole > len(cache) if best == 6 else whole < 14 * len(cache)
    assert not cache.present_QK[:, 2].all() and cache.present_QK[:, 2].any(), (
        "some have friends, some have none"
    )


def test_lists_come_from_the_best_of_each_granularity_and_ties_keep_their_order() -> None:
    """By hand: scores of 4 items in 2 granularities, pools of one item each, and the upper bound of
    the other items.
    """
    z_QKD = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    items_ND = torch.tensor([[3.0, 0.0], [0.0, 3.0], [2.0, 2.0], [0.0, 0.0]])
    queries = Queries(Histories.of_items([[3]]), np.array([0, 1]), np.array([2], dtype=np.int32))
    model = SimpleNamespace(
        item_vectors_ND=items_ND,
        names=["a", "b"],
        popularity_N=torch.arange(4.0),
        unit_contributions=lambda _: Contributions(z_QKD, torch.ones(1, 2), {}),
    )
    cache: ScoreCache = build_cache(model, queries, True, 1)  # type: ignore[arg-type]
    assert sorted(cache.pool_QP[0].tolist()) == [0, 1] and cache.scores_QKP[0, :, -1].tolist() == [
        3.0,
        3.0,
    ]
    # 3, .3, 2.2; the bound is 3.3, so the pools may miss the best item
    one, whole = cache.lists(torch.tensor([[1.0, 0.1]]), 1)
    assert (one.items_QL.tolist(), whole) == ([[0]], 1)
    both, whole = cache.lists(torch.tensor([[1.0, 1.0]]), 1)  # 3, 3, 4: the best item is in no pool
    assert (both.items_QL.tolist(), both.hits_QL.tolist(), whole) == ([[2]], [[True]], 1)
    # order of popularity, without the item of the history
    none, whole = cache.lists(torch.zeros(1, 2), 3)
    assert (none.items_QL.tolist(), whole) == ([[2, 1, 0]], 1)
    every = build_cache(model, queries, True, 4)  # type: ignore[arg-type]
    order = rank(SimpleNamespace(scores=lambda _: torch.tensor([[3.0, 3, 2, 0]])), queries, 4)  # type: ignore[arg-type]
    tied, whole = every.lists(torch.tensor([[1.0, 1.0]]), 4)
    assert (
        tied.items_QL[0, 1:3].tolist() == order.items_BK[0, :2].tolist()
        and tied.items_QL[0, 3] == -1
        and not whole
    )


# ------------------------------------------------------------------------------------------- search


def planted(tmp_path: Path, weights: list[float]) -> Trials:
    """``evolution`` points to a user's target, ``social`` to nothing, ``collaborative`` to the
    target for a third of the users.
    """
    dataset = world(tmp_path)
    config = settings(
        **{
            name: {"weight": w}
            for name, w in zip(("evolution", "collaborative", "social"), weights, strict=True)
        }
    )
    torch.manual_seed(0)
    model = build_model(config.model, config.train, dataset, Split.TRAIN)
    frozen = model.freeze(build_graphs(dataset, Split.TRAIN, model))
    items_ND = torch.nn.functional.normalize(torch.randn(NUM_ITEMS, 16), dim=1)
    frozen.item_vectors_ND = items_ND
    queries = dataset.histories().queries(Split.VALID)
    target_V = dict(
        zip(queries.histories.users_U.tolist(), queries.target_items.tolist(), strict=True)
    )
    noise_VD = 0.35 * torch.randn(NUM_USERS, 2, 16)

    def encode(batch: Batch, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        users = batch.users_U[batch.rows_B]
        aims_BD = items_ND[[target_V[user] for user in users.tolist()]]
        third_B1 = (users % 3 == 0)[:, None]
        lost_BD = torch.randn(
            len(users), 16, generator=torch.Generator().manual_seed(int(users[0]))
        )
        z_BKD = torch.stack(
            [
                aims_BD + noise_VD[users, 0],
                torch.where(third_B1, 0.5 * aims_BD, 0.2 * noise_VD[users, 1]),
                lost_BD,
            ],
            1,
        )
        return z_BKD, torch.ones(len(users), 3, dtype=torch.bool)

    frozen.encoders.encode = encode  # type: ignore[method-assign]
    return trials_of(frozen, dataset)


def test_search_from_bad_weights_lowers_the_weight_of_a_useless_granularity(tmp_path: Path) -> None:
    trials = planted(tmp_path, [0.05, 0.05, 1.0])
    options = FusionSearchConfig(settings=120)
    search(trials, options, 0)
    best, today = trials.picked(options), trials.today
    assert today.shares_K is None and today.metric < 0.5 < 0.8 < best.metric
    shares = dict(zip(trials.space.names, best.shares_K, strict=True))  # type: ignore[arg-type]
    assert shares["social"] < 0.1 < shares["evolution"]
    values_K = trials.space.values(best.shares_K)  # type: ignore[arg-type]
    assert values_K.max() == pytest.approx(1.0) and (values_K >= 0).all(), (
        "λ of a weighted fusion stay in [0, 1]"
    )
    assert len(trials.tried) == 120
    crossed = cross_fit(trials, options, 0, 200)
    assert crossed.metric.low > 0.2
    again = trials.take(np.arange(len(trials.cache)))
    search(again, options, 0)
    assert [found.metric for found in again.tried] == [found.metric for found in trials.tried], (
        "the seed determines the search"
    )


def test_pareto_front_and_picked_settings_are_correct(tmp_path: Path) -> None:
    points = np.array(
        [[3.0, 0, 1], [2, 2, 1], [2, 1, 1], [2, 2, 1], [0, 3, 0], [1, 1, 2], [1, 0, 2]]
    )
    assert front(points).tolist() == [True, True, False, True, True, True, False]
    metric = np.array([0.50, 0.499, 0.49, 0.2])
    other = np.array([1.0, 3.0, 4.0, 9.0])
    none = np.zeros(4)
    assert [choose(metric, none, other, within) for within in (0.0, 0.01, 0.02, 0.7)] == [
        0,
        1,
        2,
        3,
    ]
    trials = planted(tmp_path, [1.0, 0.5, 0.5])
    options = FusionSearchConfig(settings=60, pick="coverage", within=0.2)
    search(trials, options, 0)
    best, wide = trials.picked(FusionSearchConfig()), trials.picked(options)
    assert wide.metric >= 0.8 * best.metric and wide.lists["coverage"] >= best.lists["coverage"]
    kept = trials.front()
    assert kept[0].metric == best.metric and all(
        one.metric >= two.metric for one, two in zip(kept, kept[1:], strict=False)
    )


@pytest.mark.parametrize("kind", ["weighted", "learned", "gated"])
def test_current_weights_change_nothing_and_ratios_apply_to_another_training(
    tmp_path: Path, kind: str
) -> None:
    dataset = world(tmp_path)
    frozen, other = frozen_model(dataset, kind), frozen_model(dataset, kind)
    space = trials_of(frozen, dataset).space
    if kind != "weighted":
        with torch.no_grad():
            next(other.encoders.fusion.parameters()).add_(0.5)
    before = other.encoders.state_dict()
    for name, tensor in space.for_model(other.encoders, space.today_K).items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-5, atol=1e-6)
    present_QK = torch.ones(len(trials_of(frozen, dataset).cache), 4, dtype=torch.bool)
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    weights_K = space.weights(space.values(shares), present_QK).mean(0).numpy()
    found = weights_K * space.spread_K
    if kind != "gated":
        assert found / found.sum() == pytest.approx(shares, abs=1e-4)
    else:
        assert weights_K[:3].sum() == pytest.approx(3.0, abs=1e-4), (
            "a gate's weights add up to their number"
        )


# ------------------------------------------------------------------------------------------ command


def write_run(
    root: Path, config: Config, dataset: PreparedDataset, bad: dict[str, float]
) -> TrainResult:
    """A run folder after ``train``; then its fusion gets worse weights, also in the frozen and
    selected model.
    """
    result = fit(config, dataset, Validator.of(config.train, config.evaluate), TrainContext())
    names = result.frozen.trained_names
    wrong_K = torch.tensor([bad[name] for name in names])
    result.frozen.encoders.load_state_dict(
        {**result.frozen.encoders.state_dict(), "fusion.weights_K": wrong_K}
    )
    for state in (result.weights, result.selected):
        assert state is not None
        state["model.encoders.fusion.weights_K"] = wrong_K
    save_trained(root / "model", result)
    (root / "model" / ORIGIN).write_text(json.dumps({"hash": dataset.manifest.content_hash}))
    return result


def test_command_registers_better_weights_as_a_challenger(tmp_path: Path, capsys: Captured) -> None:
    root = tmp_path / "run"
    dataset = world(root / "dataset")
    config = settings(evolution={"dropout": 0.0, "input_dropout": 0.0}, social={"dropout": 0.0})
    result = write_run(root, config, dataset, {"evolution": 0.05, "social": 1.0})
    content = config.model_dump(mode="json") | {
        "run": {"dir": str(root)},
        "registry": {"name": "walks"},
    }
    content["tune"]["fusion"]["settings"] = 40
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    command = ["tune", "--config", str(tmp_path / "c.yaml")]
    assert main([*command, "--dry-run"]) == 0 and "fusion/report.html" in capsys.readouterr().out
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "registered with the chosen weights" in printed and "validation, cross-fitted" in printed
    report = json.loads((root / "fusion/fusion.json").read_text())
    assert report["changed"] and report["gain"]["cross_fitted"]["difference"] > 0
    assert report["validation"]["largest_difference_from_cache"] == 0
    assert report["validation"]["picked"]["ndcg@5"] == pytest.approx(
        report["picked"]["metric"], abs=1e-12
    )
    assert report["test"]["picked"]["ndcg@5"] > report["test"]["today"]["ndcg@5"] + 0.1
    assert report["picked"]["weights"]["evolution"] > report["picked"]["weights"]["social"]
    html = (root / "fusion/report.html").read_text()
    assert (
        "Registered with the chosen weights" in html
        and html.count('class="plot"') == 3
        and "http" not in html
    )
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    version = client.get_model_version_by_alias("walks", "challenger")
    assert version.tags["parent"] == str(root / "bundle")
    bundle = read_bundle(root / "fusion/bundle")
    assert bundle.model.encoders.fusion.state_dict()["weights_K"].tolist() == pytest.approx(
        [report["picked"]["weights"][name] for name in result.frozen.trained_names], abs=1e-5
    )
    assert torch.equal(
        bundle.model.item_vectors_ND, read_bundle(root / "bundle").model.item_vectors_ND
    )
    assert main([*command, "--tracking.enabled", "false", "--tune.fusion.settings", "1"]) == 0
    assert "the model is unchanged: no other setting" in capsys.readouterr().out
    assert not (root / "fusion/bundle").exists() and (root / "bundle").exists()


@pytest.mark.parametrize("most", [20, 1])  # 1: the sample has no user of the cache
def test_weights_are_confirmed_on_a_sample_of_the_users(tmp_path: Path, most: int) -> None:
    dataset = world(tmp_path)
    config, frozen = settings(), frozen_model(dataset, "weighted")
    config.evaluate.max_users = most
    trials = trials_of(frozen, dataset)
    is_sampled_V = evaluated_users_V(dataset, config.evaluate, config.seed)
    sampled = trials.cache.queries.histories.users_U
    if most == 1:
        trials = trials.take(np.flatnonzero(~is_sampled_V[sampled]))
    search(trials, FusionSearchConfig(settings=10), 0)
    crossed = cross_fit(trials, FusionSearchConfig(settings=10), 0, 100)
    found = Found(trials.picked(config.tune.fusion), crossed, 1.0, 1.0)
    result: Any = SimpleNamespace(frozen=frozen, refit=False)
    report, _ = confirmed(config, dataset, result, frozen, trials, found)
    assert report["validation"]["users"] < NUM_USERS
    assert report["validation"]["largest_difference_from_cache"] == (0 if most == 20 else None)
    render_report(tmp_path / "page.html", report, "walks")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert ("differ by at most" in page) == (most == 20)


@pytest.mark.slow
def test_search_in_a_run_folder_on_an_object_store(
    tmp_path: Path, bucket: str, capsys: Captured
) -> None:
    here, there = tmp_path / "run", f"{bucket}/run"
    config = settings(evolution={"dropout": 0.0, "input_dropout": 0.0}, social={"dropout": 0.0})
    write_run(here, config, world(here / "dataset"), {"evolution": 0.05, "social": 1.0})
    upload(here, there)
    content = config.model_dump(mode="json") | {
        "run": {"dir": there},
        "registry": {"name": "walks"},
    }
    content["tracking"] = {"uri": f"sqlite:///{tmp_path / 'mlflow.db'}"}
    content["tune"]["fusion"]["settings"] = 20
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    command = ["tune", "--config", str(tmp_path / "c.yaml")]
    assert main(command) == 0
    assert f"report      {there}/fusion/report.html" in capsys.readouterr().out
    report = json.loads(read_bytes(f"{there}/fusion/fusion.json"))
    assert report["changed"] and report["parent"] == f"{there}/bundle"
    assert (
        read_bundle(resolve(f"{there}/fusion", "")).info.extra["parent"]["uri"] == f"{there}/bundle"
    )
    assert json.loads(read_bytes(f"{there}/fusion/registered.json"))["version"] == 1
    assert main([*command, "--tracking.enabled", "false", "--tune.fusion.settings", "1"]) == 0
    with pytest.raises(ArtifactError, match="has no model bundle"):
        resolve(f"{there}/fusion", "")  # the bundle of the search before
    assert main([*command, "--tune.search", "trials"]) == 2
    assert "is remote, but a sweep needs its ledger" in capsys.readouterr().err


def test_single_granularity_and_updated_model_are_refused(tmp_path: Path) -> None:
    one = settings(evolution={})
    dataset = world(tmp_path / "run/dataset", valid=False)
    folder = RunFolder(tmp_path / "run", Progress(None, None))  # type: ignore[arg-type]
    folder.model.mkdir(parents=True)
    (folder.model / ORIGIN).write_text(json.dumps({"hash": dataset.manifest.content_hash}))
    frozen = build_model(one.model, one.train, dataset, Split.TRAIN).freeze(
        build_graphs(dataset, Split.TRAIN)
    )
    result = TrainResult(frozen, {}, [], 1, False, 0.0)
    with pytest.raises(ConfigError, match=r"has only evolution; enable another"):
        check(result, folder)
    two = replace(result, frozen=frozen_model(dataset, "weighted"))
    check(two, folder)
    (folder.model / ORIGIN).write_text(json.dumps({"parent": {"uri": "models:/a/1"}}))
    with pytest.raises(ConfigError, match=r"is an update of an earlier model.*update\.only fusion"):
        check(two, folder)


def test_missing_model_or_validation_split_ends_with_code_2(
    tmp_path: Path, capsys: Captured
) -> None:
    root = tmp_path / "run"
    dataset = world(root / "dataset", valid=False)
    config = settings()
    content = config.model_dump(mode="json") | {
        "run": {"dir": str(root)},
        "tracking": {"enabled": False},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    command = ["tune", "--config", str(tmp_path / "c.yaml")]
    assert main(command) == 2
    assert "holds no trained model; run `recsys train`" in capsys.readouterr().err
    frozen = frozen_model(dataset, "weighted")
    save_trained(root / "model", TrainResult(frozen, {}, [], 1, False, 0.0))
    (root / "model" / ORIGIN).write_text(json.dumps({"hash": dataset.manifest.content_hash}))
    assert main(command) == 2
    assert "has 0 validation queries with a target that counts" in capsys.readouterr().err
