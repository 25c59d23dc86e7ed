"""The feature-store example: histories come from Feast at request time, and the answers equal those
of the model.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.export.export_folder import export
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_requests
from tests.handmade import small_model, small_world

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
MINUTE = 60


@pytest.fixture
def feast_python() -> str:
    """A Python interpreter with Feast, onnxruntime and faiss."""
    named = os.environ.get("FEAST_PYTHON", "")
    if not named and importlib.util.find_spec("feast") is None:
        pytest.skip(
            "needs Feast, which needs pandas below 3 and so an environment of its own: name its"
            " Python in FEAST_PYTHON, see docs/examples/feast/README.md"
        )
    return named or sys.executable


@pytest.mark.slow
def test_histories_come_from_a_feature_store(
    feast_python: str, tmp_path: Path, one_thread: None
) -> None:
    pytest.importorskip("onnxruntime", reason="needs `pip install 'multigrain[export]'`")
    dataset = small_world(tmp_path / "dataset")
    write_bundle(tmp_path / "bundle", small_model(dataset), dataset, {})
    export(tmp_path / "bundle", tmp_path / "exported", ["onnx", "faiss"])
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    start = 1_700_000_000
    events = {"ann": [("i1", "view"), ("i5", "buy"), ("i7", "view")], "bob": [("i9", "buy")]}
    rows = [
        {"user_id": user, "item_id": item, "timestamp": start + MINUTE * place, "event_type": kind}
        for user, had in events.items()
        for place, (item, kind) in enumerate(had)
    ]
    pq.write_table(pa.Table.from_pylist(rows[::-1]), tmp_path / "events.parquet")

    def serve(*words: str) -> str:
        command = [feast_python, str(tmp_path / "examples/feast/serve.py"), *words]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, env={"PATH": os.environ["PATH"]}
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def expected(*histories: list[dict[str, Any]]) -> list[Any]:
        requests = parse_requests([{"history": history, "k": 10} for history in histories])
        return Recommender(read_bundle(tmp_path / "bundle")).recommend(requests)

    def check(users: list[str], answers: list[Any]) -> None:
        found = [
            json.loads(line)
            for line in serve("ask", str(tmp_path / "exported"), *users).splitlines()
        ]
        for user, mine, theirs in zip(users, found, answers, strict=True):
            assert (
                mine["user_id"] == user
                and mine["item_ids"] == theirs.item_ids
                and mine["source"] == theirs.source
            )
            np.testing.assert_allclose(mine["scores"], theirs.scores, atol=1e-4)

    def event(row: dict[str, Any]) -> dict[str, Any]:
        at = datetime.fromtimestamp(row["timestamp"], UTC).isoformat()
        return {"item_id": row["item_id"], "event_type": row["event_type"], "timestamp": at}

    ann, bob = ([event(row) for row in rows if row["user_id"] == user] for user in events)
    serve("load", str(tmp_path / "events.parquet"))
    check(["ann", "bob", "somebody new"], expected(ann, bob, []))
    serve("add", "bob", "i3", "view")
    now = int(datetime.now(UTC).timestamp())
    bob.append(event({"item_id": "i3", "event_type": "view", "timestamp": now}))
    check(["bob"], expected(bob))
