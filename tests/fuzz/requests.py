"""Bodies of calls to a served model, in our form and in MLflow's: an answer or a refusal, never an
internal error."""

from __future__ import annotations

import asyncio
import json
import math
from functools import cache
from typing import Any

import pyarrow as pa
import torch

from recsys.config import build_config
from recsys.data.context_columns import ContextColumn
from recsys.data.histories import Split
from recsys.serving.admission import Limits
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.calls import INVOCATIONS, RECOMMEND, Reply
from recsys.serving.requests import Job
from recsys.serving.service import Incoming, Outcome, Service
from recsys.training.fresh_model import build_graphs, build_model
from tests.fuzz.reading import place
from tests.handmade import HISTORIES, ITEMS, write_dataset

SEEDS = [
    b'\x00{"user_id": "u0", "k": 3, "exclude_seen": false}',
    (
        b'\x00[{"history": ["i1", {"item_id": "i2", "event_type": "buy", "timestamp":'
        b' "2020-01-01T00:00:00Z"}]}]'
    ),
    (
        b'\x00{"history": [{"item_id": "i2", "timestamp": 1600000000.5, "context": {}}], "horizon":'
        b' 2, "context": null}'
    ),
    b'\x00{"friends": ["u1", "nobody"], "attributes": {"age": 3, "town": "a"}, "user_id": null}',
    b'\x00{"user_id": "u0", "context": {"weather": "rain", "warmth": 12.5}}',
    b'\x01{"dataframe_records": [{"user_id": "u0"}, {"user_id": "u9"}], "params": {"k": 2}}',
    b'\x01{"dataframe_split": {"columns": ["user_id", "k"], "data": [["u0", 2.0]]}}',
    b'\x01{"inputs": {"user_id": ["u0", "u1"]}}',
    b'\x01{"instances": [{"user_id": "u0", "history": ["i1"]}]}',
]


@cache
def service() -> Service:
    """A model with random weights over six users and twelve items, with order, friends, attributes
    and context."""
    folder = place()
    context = (ContextColumn("weather", ("rain", "sun")), ContextColumn("warmth", None, 10.0, 5.0))
    dataset = write_dataset(
        folder / "dataset",
        HISTORIES,
        ITEMS,
        event_types=("view", "buy"),
        friends=((0, 3), (1, 2)),
        text_width=6,
        user_columns={
            "age": pa.array([20.0, 30.0, 40.0, None, 25.0, 35.0]),
            "town": pa.array(["a", "b"] * 3),
        },
        context=context,
        codes=[[[2, 1]] * len(row) for row in HISTORIES],
    )
    on: dict[str, Any] = {
        name: {"enabled": True} for name in ("behaviour", "social", "collaborative", "profile")
    }
    on["profile"] |= {"min_frequency": 1}
    on["evolution"] = {"enabled": True, "query_context": ["weather", "warmth"]}
    model = {"width": 8, "max_history": 4, "item": {"init_std": 0.5}, "granularities": on}
    torch.manual_seed(0)
    config = build_config({"model": model})
    built = build_model(config.model, config.train, dataset, Split.VALID)
    frozen = built.freeze(build_graphs(dataset, Split.VALID, built))
    write_bundle(folder / "bundle", frozen, dataset, {})
    served = Service(Limits(1 << 20, 16))
    served.adopt(read_bundle(folder / "bundle"), {"version": "1"})
    return served


def reply_to(path: str, body: bytes) -> Reply:
    served = service()

    async def ask(job: Job) -> Outcome:
        return served.answer([job])[0]

    return asyncio.run(served.handle(Incoming("POST", path, {}, body), ask))


def run(data: bytes) -> None:
    if not data:
        return
    reply = reply_to(INVOCATIONS if data[0] & 1 else RECOMMEND, data[1:])
    content = json.loads(reply.body)
    assert reply.status in (200, 400, 413), reply.body
    if reply.status != 200:
        assert content.get("error") or content.get("message")
        return
    answers = (
        content["predictions"]
        if data[0] & 1
        else content
        if isinstance(content, list)
        else [content]
    )
    for answer in answers:
        assert len(answer["item_ids"]) == len(set(answer["item_ids"])) == len(answer["scores"])
        assert answer["scores"] == sorted(answer["scores"], reverse=True)
        for rank, score in enumerate(answer["scores"]):
            assert math.isfinite(score)
            if answer["source"] == "model":
                assert sum(shares[rank] for shares in answer["shares"].values()) == score
