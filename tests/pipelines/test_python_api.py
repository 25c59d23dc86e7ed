"""The Python API: frames in, a model and frames out, through the stages of the command line."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import recsys
from pipelines.python.request_arguments import seconds_of
from recsys.errors import ArtifactError, ConfigError, DataError, RequestError, SourceError
from tests.own_data import World
from tests.training_here import training_here

SMALL = {
    "model.width": 8,
    "model.granularities.evolution": {"enabled": True, "cell": "gru"},
    "model.granularities.item_cf": {"enabled": True},
    "train.epochs": 2,
    "evaluate.bootstrap": 200,
    "evaluate.baselines": ["popularity", "item_knn"],
}


def _orders() -> pd.DataFrame:
    world = World()
    return pd.DataFrame(
        {
            "customer": [f"user {event.user}" if event.user else "ann" for event in world.events],
            "product": [f"item {event.item}" for event in world.events],
            "ordered_at": [event.time for event in world.events],
        }
    )


def _products() -> pd.DataFrame:
    world = World()
    return pd.DataFrame(
        {
            "product": [f"item {item}" for item in range(world.items)],
            "title": world.titles,
            "price": world.prices,
            "category": [genres[0] for genres in world.genres],
        }
    )


def _code() -> list[list[str]]:
    """The code blocks of docs/python.md, before the section "Parts alone" and in it."""
    text = (Path(__file__).parents[2] / "docs/python.md").read_text(encoding="utf-8")
    parts = text.split("## Parts alone\n")
    return [re.findall(r"^```python\n(.*?)^```", part, re.MULTILINE | re.DOTALL) for part in parts]


# what the page says about the values of its three examples
PARTS = """
import torch
import numpy as np
assert granularity["z_BD"].shape == (3, 16) and granularity["scores_BN"].shape == (3, 5)
assert granularity["present_B"].tolist() == [True, True, False]
assert granularity["z_BD"][:2].any(1).all() and not granularity["z_BD"][2].any()
logits_PN = (loss["users_BD"] @ loss["items_ND"].T)[loss["pairs_P"]]
naive = torch.nn.functional.cross_entropy(logits_PN, loss["targets_P"], reduction="sum")
torch.testing.assert_close(loss["loss"], naive)
assert loss["users_BD"].grad.any(1).all() and loss["items_ND"].grad.any(1).all()
rank_2, rank_3 = 1 / np.log2(3), 1 / 2
np.testing.assert_allclose(metric["ndcg_B"], [rank_2, rank_3 / (1 + rank_2)])
np.testing.assert_allclose(metric["recall_B"], [1, 1 / 2])
"""


def test_parts_on_the_page_run_alone_without_ray_and_mlflow() -> None:
    _, blocks = _code()
    names = ("granularity", "loss", "metric")
    lines = ["import sys", "sys.modules['ray'] = sys.modules['mlflow'] = None  # imports fail"]
    for name, block in zip(names, blocks, strict=True):
        lines.append(f"{name} = {{}}\nexec({block!r}, {name})")
    script = "\n".join([*lines, PARTS])
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def page(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The code of docs/python.md, run block by block on two files, with a small model instead of a
    search.
    """
    folder = tmp_path_factory.mktemp("shop")
    _orders().to_csv(folder / "orders.csv", index=False)
    _products().to_csv(folder / "products.csv", index=False)
    (_, *blocks), _ = _code()  # the first writes sample files
    assert len(blocks) == 2 and blocks[0].count('budget="10m"') == 1
    names: dict[str, Any] = {"SMALL": SMALL, "NO_TEXT": {"data.text.enabled": False}}
    with pytest.MonkeyPatch.context() as patch, training_here() as trained:
        patch.chdir(folder)
        for block in blocks:
            small = block.replace('budget="10m"', "settings=SMALL, verbose=False")
            exec(small.replace("items=products)", "items=products, settings=NO_TEXT)"), names)  # noqa: S102
    assert len(trained) == 1
    return names


def test_sample_files_of_the_page_have_the_columns_of_its_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ((sample, *_), _) = _code()
    exec(sample, {})  # noqa: S102
    orders, products = pd.read_csv("orders.csv"), pd.read_csv("products.csv")
    assert list(orders) == list(_orders()) and list(products) == list(_products())
    assert set(orders["product"]) == set(products["product"]) and "ann" in set(orders["customer"])


@pytest.fixture(scope="module")
def fitted(page: dict[str, Any]) -> tuple[recsys.Dataset, recsys.Model]:
    return page["dataset"], page["model"]


def test_importing_recsys_imports_no_slow_module() -> None:
    code = (
        "import sys, recsys; print([m for m in ('torch', 'ray', 'mlflow', 'pydantic', 'pyarrow') if"
        " m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.strip() == "[]"


def test_model_from_frames_has_figures_and_a_report(
    fitted: tuple[recsys.Dataset, recsys.Model],
) -> None:
    _, model = fitted
    figures = model.evaluate()
    assert list(figures.index) == ["model", "popularity", "item_knn"]
    metric = model.metrics["metric"]
    assert figures.loc["model", metric] == model.metrics["model"][metric]
    assert model.report.read_text(encoding="utf-8").startswith("<!")


def test_other_cut_offs_are_measured(fitted: tuple[recsys.Dataset, recsys.Model]) -> None:
    _, model = fitted
    assert "recall@3" not in model.evaluate().columns
    run = model.run
    assert run is not None
    files = [run / name for name in ("metrics.json", "report.html", "config.yaml", "history.jsonl")]
    before = [file.read_bytes() for file in files]
    excludes = not model.recommender.bundle.exclude_seen
    other = {"evaluate.ks": [3, 10, 20], "evaluate.exclude_seen": excludes}
    assert "recall@3" in model.evaluate({**other, "evaluate.baselines": []}).columns
    assert [file.read_bytes() for file in files] == before, "the run keeps its own evaluation"


def test_known_users_and_histories_get_lists(fitted: tuple[recsys.Dataset, recsys.Model]) -> None:
    _, model = fitted
    known = model.recommend("user 3", k=5)
    assert known.user_id.tolist() == ["user 3"] * 5
    assert known["rank"].tolist() == [1, 2, 3, 4, 5]
    shares = known[[name for name in known.columns if name.startswith("share_")]].sum(axis=1)
    np.testing.assert_allclose(shares, known.score, rtol=1e-4)
    new = model.recommend(histories=[["item 1", "item 2"], ["item 3"]], k=4)
    assert new.user_id.tolist() == ["0"] * 4 + ["1"] * 4
    named = model.recommend(histories={"a newcomer": ["item 1", "item 2"]}, k=4)
    assert named.item_id.tolist() == new.item_id.tolist()[:4]
    assert len(model.recommend(k=2)) == 2 * len(model.recommender.bundle.user_ids)


def test_time_of_the_lists_has_the_forms_of_a_request(
    fitted: tuple[recsys.Dataset, recsys.Model],
) -> None:
    _, model = fitted
    day = 20_000 * 86_400
    forms = [day, "2024-10-04", datetime(2024, 10, 4, tzinfo=UTC), np.datetime64("2024-10-04")]
    assert {seconds_of(form) for form in forms} == {day}
    asked = model.recommend(requests=[{"user_id": "user 3", "at": day}], k=5)
    pd.testing.assert_frame_equal(model.recommend("user 3", k=5, at="2024-10-04"), asked)
    for wrong in ("soon", ""):
        with pytest.raises(RequestError, match=f"^at: got {wrong!r}"):
            model.explain("user 3", at=wrong)


def test_candidates_are_respected_and_wrong_arguments_refused(
    fitted: tuple[recsys.Dataset, recsys.Model],
) -> None:
    dataset, model = fitted
    allowed = ["item 5", "item 9", "item 11"]
    found = model.recommend("user 3", k=2, candidates=allowed, exclude_seen=False)
    assert set(found.item_id) <= set(allowed) and len(found) == 2
    with pytest.raises(RequestError, match="several of users, histories and requests"):
        model.recommend("user 3", histories=[["item 1"]])
    with pytest.raises(RequestError, match="candidate"):
        model.recommend("user 3", candidate=allowed)
    for k in (0, -1, True, 2.5):
        with pytest.raises(RequestError, match="expected a whole number from 1"):
            model.recommend("user 3", k=k)
    for excludes in ("yes", 2):
        with pytest.raises(RequestError, match=f"^exclude_seen: got {excludes!r}; expected True"):
            model.recommend("user 3", exclude_seen=excludes)
    with pytest.raises(ConfigError, match=r"split: got 'tset'; did you mean test\?"):
        dataset.events("tset")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"histories": "item 1"}, r"histories: got 'item 1' \(str\), .*; write \[\[\"item 1\"\]\]"),
        ({"histories": ["item 1", "item 2"]}, r"histories\[0\]: got 'item 1' .*; write \[\"item 1"),
        ({"histories": {"ann": "item 1"}}, r"histories\['ann'\]: got 'item 1' \(str\), expected"),
        ({"histories": 5}, r"histories: got 5 \(int\), expected a list of lists of item ids"),
        (
            {"requests": {"user_id": "ann"}},
            r"requests: got {'user_id': 'ann'} \(dict\), .*\]",
        ),
        ({"requests": ["ann"]}, "request 0: expected an object with user_id, history"),
        ({"users": ["ann", None]}, "users: got None, expected user ids"),
        ({"users": 5.5}, r"users: got 5\.5 \(float\), expected a list of user ids"),
    ],
)
def test_argument_of_a_wrong_type_is_named(
    fitted: tuple[recsys.Dataset, recsys.Model], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=f"^{message}"):
        fitted[1].recommend(**given)


def test_values_of_numpy_are_accepted_everywhere(
    fitted: tuple[recsys.Dataset, recsys.Model],
) -> None:
    _, model = fitted
    k, price = np.int64(3), {"price": {"ge": np.int64(0)}}
    rules = {"k": k, "offset": np.int64(1), "filters": price}
    items = np.array(["item 1", "item 2"])
    for found in (
        model.recommend(np.array(["user 3"]), **rules, exclude_seen=np.bool_(False)),
        model.recommend(histories=np.array([items]), **rules, exclude=items),
        model.recommend(requests=[{"history": items, **rules}]),
        model.explain("user 3", history=pd.Series(items), **rules),
        model.similar(items[0], **rules),
    ):
        assert len(found) == 3
    with pytest.raises(RequestError, match=r"^history: got 'item 1' .*; write \[\"item 1\"\]"):
        model.explain("user 3", history="item 1")


def test_whole_numbers_are_ids_in_every_method(fitted: tuple[recsys.Dataset, recsys.Model]) -> None:
    _, model = fitted
    for user in (51, np.int64(51)):
        assert set(model.recommend(user, k=2).user_id) == {"51"}
        assert set(model.explain(user, k=2).user_id) == {"51"}
        with pytest.raises(RequestError, match="^item_id: the model does not know '51'"):
            model.similar(user)


def test_similar_items_and_explanations_are_returned(
    fitted: tuple[recsys.Dataset, recsys.Model],
) -> None:
    _, model = fitted
    alike = model.similar("item 7", k=3)
    assert len(alike) == 3 and "item 7" not in set(alike.item_id)
    with pytest.raises(RequestError, match="^item_id: the model does not know 'x'"):
        model.similar("x")
    with pytest.raises(RequestError, match=r"^filters\.kin: unknown attribute"):
        model.recommend("user 3", filters={"kin": "a"})
    explained = model.explain("user 3", k=2)
    assert all(explained.why.str.len() > 10) and set(explained.explanation[0]) == {
        "items",
        "friends",
        "sentence",
    }


def test_saved_model_gives_the_same_answers(
    fitted: tuple[recsys.Dataset, recsys.Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model = fitted
    monkeypatch.setenv("HOME", str(tmp_path))
    path = model.save("~/served")
    assert path == tmp_path / "served" and recsys.load("~/served").bundle == path
    again = recsys.load(path)
    pd.testing.assert_frame_equal(again.recommend("user 3"), model.recommend("user 3"))
    assert (
        again.metrics["model"][model.metrics["metric"]]
        == model.metrics["model"][model.metrics["metric"]]
    )
    with pytest.raises(ArtifactError, match="exists"):
        model.save(path)
    with pytest.raises(ArtifactError, match="no run folder"):
        again.evaluate()
    assert recsys.load(model.run or "").report == model.report


def test_registered_model_is_loaded_by_its_name(
    fitted: tuple[recsys.Dataset, recsys.Model], tmp_path: Path
) -> None:
    _, model = fitted
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    excludes = model.recommender.bundle.exclude_seen
    other = {"evaluate.exclude_seen": not excludes}
    name = model.register("shop", tracking_uri=uri, settings=other)
    assert name == "models:/shop/1"
    registered = recsys.load(name, tracking_uri=uri).recommender.bundle
    assert registered.exclude_seen == excludes, "as the model was evaluated"
    pd.testing.assert_frame_equal(
        recsys.load(name, tracking_uri=uri).recommend("user 3"), model.recommend("user 3")
    )


def test_external_lists_of_popular_items_have_the_expected_figures(
    fitted: tuple[recsys.Dataset, recsys.Model],
) -> None:
    dataset, _ = fitted
    train = pd.concat([dataset.events("train"), dataset.events("valid")])
    counts = train.item_id.value_counts()
    seen = train.groupby("user_id").item_id.agg(set)
    test_users = dataset.events("test").user_id.unique()
    rows: list[dict[str, Any]] = []
    for user in test_users:
        unseen = [item for item in counts.index if item not in seen.get(user, set())]
        rows += [
            {"user_id": user, "item_id": item, "score": counts[item] + 1e-3 * len(rows)}
            for item in unseen
        ]
    found = dataset.evaluate(pd.DataFrame(rows), ks=[len(counts)])
    everything = f"recall@{len(counts)}"
    # the list contains all items that are possible
    assert found.loc[everything, "value"] == pytest.approx(1.0, abs=0.05)
    assert (found.low <= found.value).all() and (found.value <= found.high).all()
    nothing = dataset.evaluate(pd.DataFrame(rows[:1]).assign(item_id="no such item"), ks=[5])
    assert (nothing.value == 0).all()


def test_external_lists_of_the_model_have_the_figures_of_the_model(
    fitted: tuple[recsys.Dataset, recsys.Model],
) -> None:
    """Lists of the evaluated model, passed in as external lists, give all digits of
    metrics.json.
    """
    from pipelines.plumbing.opened_dataset import open_dataset
    from pipelines.plumbing.opened_model import open_trained
    from pipelines.plumbing.run_folder import open_run
    from recsys.config import load_config
    from recsys.data.bounded import evaluated_queries
    from recsys.data.histories import Split
    from recsys.evaluation.ranking import rank

    dataset, model = fitted
    assert model.run is not None
    config = load_config(model.run / "config.yaml")
    prepared = open_dataset(config.data, config.dataset_dir, config.seed)
    with open_run(config, "evaluate") as folder:
        frozen = open_trained(config.model, folder, prepared).frozen
    ranking = rank(
        frozen,
        evaluated_queries(prepared, Split.TEST, config.evaluate, config.seed),
        20,
        config.evaluate.exclude_seen,
    )
    rows, places = np.nonzero(ranking.items_BK >= 0)
    users = ranking.queries.histories.users_U[rows]
    lists = pd.DataFrame(
        {
            "user_id": [prepared.user_ids[int(user)].as_py() for user in users],
            "item_id": [
                prepared.item_ids[int(item)].as_py() for item in ranking.items_BK[rows, places]
            ],
            "rank": places + 1,
        }
    )
    found = dataset.evaluate(lists.sample(frac=1, random_state=0), ks=[10, 20])
    for name, value in found.value.items():
        assert value == pytest.approx(model.metrics["model"][name], abs=1e-12), name


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda lists: lists.drop(columns="item_id"), "no column item_id"),
        (lambda lists: lists.drop(columns="rank"), "no column rank or score"),
        (lambda lists: pd.concat([lists, lists]), "twice"),
        (lambda lists: lists.assign(user_id="nobody"), "no user is in the dataset"),
        (lambda lists: lists.assign(rank=np.nan), "rank is missing"),
    ],
)
def test_invalid_lists_are_refused(
    fitted: tuple[recsys.Dataset, recsys.Model], change: Any, why: str
) -> None:
    dataset, _ = fitted
    user = dataset.events("test").user_id.iloc[0]
    lists = pd.DataFrame({"user_id": [user], "item_id": ["item 1"], "rank": [1]})
    with pytest.raises(DataError, match=why):
        dataset.evaluate(change(lists))


def test_settings_of_data_are_accepted_only_by_the_dataset(
    fitted: tuple[recsys.Dataset, recsys.Model],
) -> None:
    dataset, _ = fitted
    with pytest.raises(ConfigError, match=r"data.order: .*Dataset"):
        recsys.fit(dataset, settings={"data.order": "none"})


def test_run_folder_is_an_argument_and_no_setting(
    fitted: tuple[recsys.Dataset, recsys.Model], tmp_path: Path
) -> None:
    dataset, model = fitted
    for settings in ({"run.dir": str(tmp_path / "run")}, {"run": {"dir": str(tmp_path / "run")}}):
        with pytest.raises(ConfigError, match=r"^settings: run\.dir: .* folder="):
            recsys.fit(dataset, settings=settings)
        with pytest.raises(ConfigError, match=rf"^settings: run\.dir: .* {model.run};"):
            model.register("shop", settings=settings)
    assert not (tmp_path / "run").exists()


def test_lists_with_seen_items_are_refused(fitted: tuple[recsys.Dataset, recsys.Model]) -> None:
    dataset, _ = fitted
    if not dataset.config.evaluate.exclude_seen:
        pytest.skip("the configuration of this world lists what a user had")
    user = dataset.events("test").user_id.iloc[0]
    train = dataset.events("train")
    item = train[train.user_id == user].item_id.iloc[0]
    with pytest.raises(DataError, match="had before"):
        dataset.evaluate(pd.DataFrame({"user_id": [user], "item_id": [item], "rank": [1]}))


def test_wrong_type_of_a_frame_is_named() -> None:
    with pytest.raises(DataError, match=r"^items: it looks like"):
        recsys.Dataset.from_pandas(
            _orders(), items=pd.DataFrame({"a": ["user 1", "user 2"], "b": ["user 3", "user 4"]})
        )
    with pytest.raises(DataError, match="events has no rows"):
        recsys.Dataset.from_pandas(_orders().head(0))


def test_missing_events_are_named_as_the_argument() -> None:
    items = pd.DataFrame({"item_id": [f"i{n}" for n in range(50)], "price": range(50)})
    missing = "^the argument events is missing"
    with pytest.raises(DataError, match=missing):
        recsys.Dataset.from_pandas(None, items=items)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=missing):
        recsys.Dataset.from_polars(None, items=pa.Table.from_pandas(items))
    with pytest.raises(DataError, match=missing):
        recsys.Dataset.from_parquet(None, items="items.parquet")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="items: got dict, expected a pandas DataFrame"):
        recsys.Dataset.from_pandas(_orders(), items={"a": 1})  # type: ignore[arg-type]
    with pytest.raises(SourceError) as error:
        recsys.Dataset.from_pandas(items)
    assert str(error.value).startswith("the argument events: no table has events")
    assert "found events: item_id, price" in str(error.value) and ".parquet" not in str(error.value)


@pytest.mark.parametrize("names", [("src", "dst"), ("a", "b"), ("user_id", "friend_id")])
@pytest.mark.parametrize("is_int", [False, True])
@pytest.mark.parametrize("num_edges", [20, 3000])
def test_frame_given_as_social_is_social(
    names: tuple[str, str], is_int: bool, num_edges: int
) -> None:
    """Whatever its columns are called, although no user may occur twice, and although there are
    more edges than events.
    """
    generator = np.random.default_rng(0)
    users = np.arange(60) if is_int else np.array([f"u{number}" for number in range(60)])
    events = pd.DataFrame(
        {
            "user_id": generator.choice(users, 600),
            "item_id": generator.integers(1000, 1040, 600),
            "timestamp": pd.Timestamp("2024-01-01")
            + pd.to_timedelta(generator.integers(0, 10**7, 600), unit="s"),
        }
    )
    one, two = (
        generator.choice(users, num_edges, replace=num_edges > len(users)) for _ in range(2)
    )
    edges = pd.DataFrame({names[0]: one, names[1]: two, "weight": generator.random(num_edges)})
    source = recsys.Dataset.from_pandas(events, social=edges).config.data.source.model_dump()
    assert [Path(file).name for file in source["social"]] == ["social.parquet"]
    assert [Path(file).name for file in source["events"]] == ["events.parquet"]
    renamed = (source["rename"] or {}).get("social", {})
    assert (renamed[names[0]], renamed[names[1]]) == ("src_user_id", "dst_user_id")


def test_events_of_the_splits_are_all_events(fitted: tuple[recsys.Dataset, recsys.Model]) -> None:
    dataset, _ = fitted
    parts = pd.concat([dataset.events(part) for part in ("train", "valid", "test")])
    orders = _orders()
    given = set(zip(orders.customer, orders["product"], orders.ordered_at.astype(str), strict=True))
    found = set(zip(parts.user_id, parts.item_id, parts.time.astype(str), strict=True))
    assert found == given


def test_polars_frames_and_parquet_files_make_the_same_dataset(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    orders = _orders()
    one = recsys.Dataset.from_polars(polars.from_pandas(orders), folder=tmp_path / "one")
    orders.to_parquet(tmp_path / "orders.parquet")
    two = recsys.Dataset.from_parquet(tmp_path / "orders.parquet", folder=tmp_path / "two")
    assert one.config.data.split == two.config.data.split
    assert one.config.data.source.rename == two.config.data.source.rename  # type: ignore[union-attr]


def test_init_writes_what_it_returns(tmp_path: Path) -> None:
    _orders().to_csv(tmp_path / "orders.csv", index=False)
    config = recsys.init(tmp_path / "orders.csv", out=tmp_path / "mine.yaml")
    assert (
        recsys.Dataset.from_config(tmp_path / "mine.yaml").config.data.source == config.data.source
    )
