"""Equal seed, configuration and number of workers: equal metrics and equal tensors on a CPU, to the
last digit."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from tests.handmade import leave_last, write_dataset

ROOT = Path(__file__).parents[2]
ITEMS = 30
USERS = 60
CASES = {  # threads, fusion, loss
    "one thread, gated": (1, "gated", "full_softmax"),
    "two threads, learned": (2, "learned", "sampled_softmax"),
}
TRAINED = ("behaviour", "evolution", "collaborative", "social", "stratum", "profile")


def write_world(folder: Path) -> None:
    """Users who walk around a circle of items, with friends, attributes and texts."""
    random = np.random.default_rng(0)
    walks = [
        [int(s + step) % ITEMS for step in range(n)]
        for s, n in random.integers((0, 6), (ITEMS, 12), (USERS, 2))
    ]
    write_dataset(
        folder,
        [leave_last(*walk, kind=user % 2) for user, walk in enumerate(walks)],
        ITEMS,
        event_types=("view", "buy"),
        friends=[
            (user, (user * 7 + 1) % USERS)
            for user in range(USERS)
            if (user * 7 + 1) % USERS != user
        ],
        text_width=8,
        user_columns={"town": pa.array([f"t{user % 4}" for user in range(USERS)])},
    )


def fitted(folder: str, threads: int, fusion: str, loss: str) -> dict[str, Any]:
    """Train, and print every metric with all digits and a hash of every tensor."""
    import torch

    from recsys.config import build_config
    from recsys.data.dataset import PreparedDataset
    from recsys.evaluation.validation import Validator
    from recsys.training.context import TrainContext
    from recsys.training.phases import fit

    torch.set_num_threads(threads)
    on: dict[str, Any] = {name: {"enabled": True} for name in TRAINED}
    on["stratum"] |= {"num_strata": [2, 3]}
    on["profile"] |= {"min_frequency": 1}
    on["item_cf"] = {"enabled": True}
    train = {
        "epochs": 2,
        "batch_size": 16,
        "metric": "ndcg@5",
        "loss": {"kind": loss, "num_negatives": 8},
    }
    model = {
        "width": 16,
        "max_history": 6,
        "granularities": on,
        "fusion": {"kind": fusion, "signal_dropout": 0.2},
    }
    config = build_config({"model": model, "train": train, "evaluate": {"ks": [5]}})
    result = fit(
        config, PreparedDataset(folder), Validator.of(config.train, config.evaluate), TrainContext()
    )
    tensors = {name: tensor for name, tensor in result.frozen.encoders.state_dict().items()}
    tensors["items"] = result.frozen.item_vectors_ND
    digests = {
        name: hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()
        for name, tensor in tensors.items()
    }
    history = [
        sorted((name, repr(value)) for name, value in r.items() if name != "seconds")
        for r in result.history
    ]
    return {"history": history, "tensors": digests}


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    """Run every case in two fresh processes with different hash seeds for sets."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    words = [sys.executable, "-W", "ignore", "-m", "tests.stories.test_determinism", str(folder)]
    environments = [
        {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"} for seed in ("1", "2")
    ]
    pipe = subprocess.PIPE
    both = [
        subprocess.Popen(words, cwd=ROOT, env=e, stdout=pipe, stderr=pipe, text=True)
        for e in environments
    ]
    found = []
    for process in both:
        out, err = process.communicate(timeout=500)
        assert process.returncode == 0, err
        found.append(json.loads(out.splitlines()[-1]))
    return found


@pytest.mark.parametrize("case", CASES)
def test_training_is_identical_in_another_process(
    twice: list[dict[str, dict[str, Any]]], case: str
) -> None:
    one, two = (found[case] for found in twice)
    assert len(one["history"]) >= 2 and len(one["tensors"]) > 20
    differ = sorted(
        name for name in one["tensors"] if one["tensors"][name] != two["tensors"].get(name)
    )
    assert (one["history"], differ) == (two["history"], [])


CONFIG: dict[str, Any] = {
    "data": {
        "source": {"kind": "synthetic", "num_users": 300, "num_items": 120, "num_partitions": 3},
        "text": {"enabled": False},
        "num_shards": 3,
    },
    "model": {
        "width": 16,
        "item": {"text": False},
        "granularities": {
            "evolution": {"enabled": True},
            "collaborative": {"enabled": True},
            "social": {"enabled": True},
            "knowledge": {"enabled": True},
            "stratum": {"enabled": True},
            "profile": {"enabled": True},
            "item_cf": {"enabled": True},
        },
    },
    "train": {"epochs": 2, "threads": 1},
    "evaluate": {"ks": [5, 20]},
    "ray": {"num_cpus": 2},
}


@pytest.mark.slow
def test_whole_run_is_identical_when_repeated(tmp_path: Path) -> None:
    """`recsys run` twice, in separate processes: prepared data, metrics and recommendations are
    equal, except times."""
    found = []
    for number in (1, 2):
        tree = {**CONFIG, "run": {"dir": str(tmp_path / f"run{number}")}}
        tree["tracking"] = {"uri": f"sqlite:///{tmp_path}/mlflow{number}.db"}
        path = tmp_path / f"config{number}.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        words = [sys.executable, "-m", "pipelines.cli", "run", "--config", str(path)]
        environment = {**os.environ, "PYTHONHASHSEED": str(number), "RAY_USAGE_STATS_ENABLED": "0"}
        done = subprocess.run(
            words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stderr[-3000:]
        metrics = json.loads((tmp_path / f"run{number}/metrics.json").read_text(encoding="utf-8"))
        metrics.pop("timing")
        manifest = json.loads(
            (tmp_path / f"run{number}/dataset/manifest.json").read_text(encoding="utf-8")
        )
        found.append((metrics, manifest["counts"], manifest["content_hash"]))
    assert found[0] == found[1]


if __name__ == "__main__":
    print(json.dumps({name: fitted(sys.argv[1], *case) for name, case in CASES.items()}))
