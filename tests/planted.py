"""Planted worlds as prepared datasets, and models trained on them in seconds: in one process,
without Ray.

Why: a world in which only one signal matters shows that a granularity does what its name says. Such
a test reads

    dataset = planted_dataset(tmp_path, {"social": 1.0})
    without = train_ndcg(dataset, {"evolution": {}})
    with_ = train_ndcg(dataset, {"evolution": {}, "social": {}})
    assert margin(with_, without) > 0.3

The dataset has everything that ``recsys prepare`` makes of the world except language-model vectors:
text vectors are bags of words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from recsys import schema
from recsys.config import Config, SyntheticSource, build_config
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Queries, Split
from recsys.evaluation.bootstrap import compare
from recsys.evaluation.validation import Validator
from recsys.granularities.social.friend_graph import Friends
from recsys.model import FrozenModel
from recsys.preparation.friend_edges import SocialRules, merge_shard, number_rows
from recsys.preparation.graphs import encode_triples
from recsys.preparation.items import align, compose_text, feature_table
from recsys.preparation.media import media_table
from recsys.sources import open_source
from recsys.sources.base import read_all
from recsys.sources.world import KNOBS
from recsys.training.context import TrainContext
from recsys.training.fresh_model import build_graphs, build_model
from recsys.training.phases import fit
from tests.handmade import Event, write_dataset

TEXT_WIDTH = 64
TEXT_FIELDS = ("title", "tags", "category")
EVENT_TYPES = ("click", "purchase", "view")  # in the order of prepare
SIZE = {"num_users": 600, "num_items": 300, "events_per_user": 8.0, "cold_items": 0.0}


def planted_dataset(folder: Path, knobs: Mapping[str, float], **world: Any) -> PreparedDataset:
    """Write the world with these ``knobs`` and all others at 0; each user's last event is test.

    ``world`` has further keys of ``data.source``; the default is :data:`SIZE`. Ids in dense order
    are the world's numbers, so that ``world_of(planted_source(…))`` has the truth about every user
    and item.
    """
    tables = {
        name: read_all(parts)
        for name, parts in open_source(planted_source(knobs, **world)).pieces().items()
    }
    user_ids = tables["users"].column(schema.USER_ID).combine_chunks()
    item_ids = tables["items"].column(schema.ITEM_ID).combine_chunks()
    histories = _histories(tables["events"], user_ids, item_ids)
    write_dataset(
        folder,
        histories,
        len(item_ids),
        event_types=EVENT_TYPES,
        text_width=TEXT_WIDTH,
        num_shards=1,
    )
    features = align(tables["items"], item_ids, schema.ITEM_ID)
    text = compose_text(features, TEXT_FIELDS, None, "")
    edges, _ = merge_shard(user_ids, number_rows(user_ids, SocialRules(), 1, tables["social"])[2])
    files, _, _ = encode_triples(features, tables["knowledge"])
    image_N = tables["items"].column("image").combine_chunks()
    images = np.asarray(image_N.flatten(), dtype=np.float16).reshape(len(item_ids), -1)
    files |= {
        "vocab/users.parquet": pa.table({schema.USER_ID: user_ids}),
        "vocab/items.parquet": pa.table({schema.ITEM_ID: item_ids}),
        "users/features.parquet": align(tables["users"], user_ids, schema.USER_ID),
        "items/features.parquet": feature_table(features, text),
        "items/media.parquet": media_table({"image": images}),
        "items/text_vectors.parquet": _text_vectors(text),
        "graphs/social.parquet": edges,
    }
    for name, found in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(found, folder / name)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["name"] = "planted"
    manifest["media"] = {
        "image": {"column": "image", "dimension": images.shape[1], "items": len(images)}
    }
    manifest["counts"] |= {
        "social_edges": edges.num_rows,
        "triples": files["graphs/knowledge.parquet"].num_rows,
        "entities": files["vocab/entities.parquet"].num_rows,
        "relations": files["vocab/relations.parquet"].num_rows,
        "items_with_text": len(item_ids),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return PreparedDataset(str(folder))


def planted_source(knobs: Mapping[str, float], **world: Any) -> SyntheticSource:
    """The configuration of that world."""
    return SyntheticSource(
        **{
            **SIZE,
            **dict.fromkeys(KNOBS, 0.0),
            "bad_rows": 0.0,
            "num_partitions": 1,
            **world,
            **knobs,
        }
    )


def train(
    dataset: PreparedDataset,
    granularities: Mapping[str, Mapping[str, Any]],
    *,
    seed: int = 0,
    width: int = 32,
    epochs: int = 20,
    model: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> FrozenModel:
    """Train a model with these granularities and options in this process; the epoch is chosen on
    validation.

    ``model`` and ``training`` have further keys of the sections ``model`` and ``train``. Items are
    ids alone unless ``model`` says otherwise, so that only a granularity can read a signal in
    addition to the events.
    """
    config = _config(
        dataset,
        granularities,
        {"width": width, **(model or {})},
        {"epochs": epochs, **(training or {})},
    )
    return fit(
        config.model_copy(update={"seed": seed}),
        dataset,
        Validator.of(config.train, config.evaluate),
        TrainContext(),
    ).frozen


def ndcg(frozen: FrozenModel, queries: Queries) -> Array:
    """ndcg@10 of every query, without seen items."""
    return Validator("ndcg@10", True, 512)(frozen, queries)


def train_ndcg(
    dataset: PreparedDataset, granularities: Mapping[str, Mapping[str, Any]], **options: Any
) -> Array:
    """ndcg@10 of every test query of a freshly trained model; options as of :func:`train`."""
    return ndcg(train(dataset, granularities, **options), dataset.histories().queries(Split.TEST))


def both_ndcg(
    dataset: PreparedDataset,
    with_: Mapping[str, Mapping[str, Any]],
    without: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int] = (0, 1),
) -> tuple[Array, Array]:
    """:func:`train_ndcg` of two sets of granularities, each over several trainings."""

    def of(names: Mapping[str, Mapping[str, Any]]) -> Array:
        return np.concatenate([train_ndcg(dataset, names, seed=seed) for seed in seeds])

    return of(with_), of(without)


def margin(with_: Array, without: Array) -> float:
    """Relative gain of the mean: 0.3 is +30 %."""
    return float(with_.mean() / without.mean() - 1)


def with_true_and_other_friends(
    dataset: PreparedDataset, granularities: Mapping[str, Any]
) -> tuple[FrozenModel, FrozenModel]:
    """Closed-form granularities fitted with the friends of the dataset, and with other people's."""
    config = build_config(
        {"data": {"dir": dataset.root}, "model": {"granularities": granularities}}
    )
    model = build_model(config.model, config.train, dataset, Split.VALID)
    graphs = build_graphs(dataset, Split.VALID, model)
    true: Friends = graphs["friends"]
    order = torch.randperm(dataset.num_users, generator=torch.Generator().manual_seed(0))
    permuted = Friends(order[true.src_F], true.dst_F, true.weight_F)
    frozen, mismatched = (
        model.freeze(replace(graphs, inputs={"friends": each})) for each in (true, permuted)
    )
    return frozen, mismatched


def is_no_loss(with_: Array, without: Array) -> bool:
    """Whether the 95 % interval of the paired difference, by bootstrap over users, includes zero or
    a gain."""
    return compare(with_, without, 1000, seed=0).high >= 0


def _config(
    dataset: PreparedDataset,
    granularities: Mapping[str, Mapping[str, Any]],
    model: dict[str, Any],
    train: dict[str, Any],
) -> Config:
    return build_config(
        {
            "data": {"dir": dataset.root},
            "model": {
                "max_history": 20,
                "unit_vectors": True,
                "item": {"text": False},
                "granularities": {
                    name: {"enabled": True, **options} for name, options in granularities.items()
                },
                **model,
            },
            "train": {
                "batch_size": 64,
                "lr": 1e-2,
                "loss": {"temperature": 0.2},
                "metric": "ndcg@10",
                "evaluate_every": 3,
                "patience": 2,
                "refit": False,
                **train,
            },
            "evaluate": {"ks": [10]},
        }
    )


def _histories(events: pa.Table, user_ids: pa.Array, item_ids: pa.Array) -> list[list[Event]]:
    """Events of every user in order of time: the last is test, the one before it validation."""
    columns = {
        "user": events.column(schema.USER_ID).to_pylist(),
        "item": events.column(schema.ITEM_ID).to_pylist(),
        "type": events.column(schema.EVENT_TYPE).to_pylist(),
        "time": (events.column(schema.TIMESTAMP).cast(pa.int64()).to_numpy() // 1_000_000).tolist(),
    }
    users, items = (
        {name: number for number, name in enumerate(ids.to_pylist())}
        for ids in (user_ids, item_ids)
    )
    histories: list[list[Event]] = [[] for _ in users]
    for user, item, kind, time in zip(*columns.values(), strict=True):
        histories[users[user]].append((items[item], EVENT_TYPES.index(kind), time, Split.TRAIN))
    for events_of_user in histories:
        for back, split in ((1, Split.TEST), (2, Split.VALID)):
            events_of_user[-back] = (*events_of_user[-back][:3], split)
    return histories


def _text_vectors(texts: pa.Array) -> pa.Table:
    """Unit vectors: the sum of one fixed random vector per word."""
    words = [text.lower().replace(",", " ").replace(".", " ").split() for text in texts.to_pylist()]
    numbers = {
        word: number for number, word in enumerate(sorted({word for row in words for word in row}))
    }
    meaning = np.random.default_rng(7).normal(size=(len(numbers), TEXT_WIDTH))
    vectors = np.stack([meaning[[numbers[word] for word in row]].sum(axis=0) for row in words])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    column = pa.FixedSizeListArray.from_arrays(
        pa.array(vectors.astype(np.float16).ravel()), TEXT_WIDTH
    )
    return pa.table({"vector": column, "has_text": pa.array(np.ones(len(words), dtype=bool))})
