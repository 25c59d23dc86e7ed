"""Ranking through the product's own code: users a second against a million items."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

import recsys.evaluation.top_items
from benchmarks.gpu_checks.setting import Setting, attempt, ms, peak_mib, timed
from benchmarks.gpu_checks.steps import LENGTH, sequence_model
from recsys.data.histories import Histories, Queries
from recsys.evaluation.top_items import top_by_vectors
from recsys.granularities.base import Graphs
from recsys.model import FrozenModel

LIST = 20
EXTRAPOLATED = 1_000_000


@contextmanager
def rows_at_a_time(rows: int, items: int) -> Iterator[None]:
    """Let the ranking score this many rows at once instead of its own number."""
    module = recsys.evaluation.top_items
    before = module._LEAST_ROWS, module.MAX_SCORES
    module._LEAST_ROWS, module.MAX_SCORES = rows, rows * items  # type: ignore[misc]
    try:
        yield
    finally:
        module._LEAST_ROWS, module.MAX_SCORES = before  # type: ignore[misc]


def users_a_second(setting: Setting) -> dict[str, Any]:
    """Users a second of encoding and ranking, on a slice of users.

    Returns
    -------
    dict
        With the rows that the product scores at a time and with more, and the extrapolated seconds
        of a million users.
    """
    setting.need_memory(8)
    items, users = setting.size(1_000_000, 3000), setting.size(2048, 32)
    model = _frozen(items, setting.device)
    random = np.random.default_rng(0)
    rows = [random.integers(items, size=LENGTH).tolist() for _ in range(users)]
    queries = Queries.without_targets(Histories.of_items(rows))
    found: dict[str, Any] = {"users": users, "items": items, "list": LIST}
    ours = _ranked(setting, model, queries)
    found["ours"] = ours
    found[f"extrapolated_seconds_for_{EXTRAPOLATED:,}_users"] = round(
        EXTRAPOLATED / ours["users_a_second"], 1
    )
    for number in (64, 256, 1024) if setting.on_gpu else (8,):
        with rows_at_a_time(number, items):
            found[f"ours, {number} rows at a time"] = attempt(
                lambda: _ranked(setting, model, queries)
            )
    users_BD = model.user_vectors(queries.take(np.arange(min(users, 64))))[0]
    product = timed(lambda: (users_BD @ model.item_vectors_ND.T).topk(LIST, dim=1), setting.device)
    found["possible: one product and topk of 64 users, ms"] = ms(product)
    return found


def _frozen(items: int, device: torch.device) -> FrozenModel:
    nothing = torch.zeros(0, dtype=torch.int64)
    model = sequence_model(items, device, dropout=0.0)
    return model.freeze(Graphs(1, items, nothing, nothing).to(device))


def _ranked(setting: Setting, model: FrozenModel, queries: Queries) -> dict[str, Any]:
    """Seconds of the second of two rankings, chunk by chunk as the product goes."""

    def encode() -> list[torch.Tensor]:
        return [model.user_vectors(piece)[0] for piece in queries.chunks(512)]

    def rank() -> None:
        for users_bD, piece in zip(encode(), queries.chunks(512), strict=True):
            seen = np.repeat(np.arange(len(piece)), piece.histories.lengths_U)
            hidden = piece.histories.items_E.astype(np.int64)
            top_by_vectors(users_bD, model.item_vectors_ND, LIST, seen, hidden)

    peak = peak_mib(rank, setting.device)
    timed(encode, setting.device)
    encoding, seconds = timed(encode, setting.device), timed(rank, setting.device)
    return {
        "users_a_second": round(len(queries) / seconds, 1),
        "share_of_encoding": round(encoding / seconds, 3),
        "peak_mib": peak,
    }
