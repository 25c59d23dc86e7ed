"""RecTools: ``recommend`` of a SASRec for every user of a table of events, or its ranker on vectors
from files.

Runs in its own environment. Prints one line of JSON. The constants are those of the benchmark:
width 64, 2 blocks, 50 events, lists of ten. One training batch creates the model that ``recommend``
needs.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Trainer
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.rank import Distance, TorchRanker
from scipy import sparse

K = 10


def recommend(path: str) -> dict[str, float]:
    events = pd.read_csv(path)
    train, valid = events[~events["held_out"]], events[events["held_out"]]
    columns = {"user": "user_id", "item": "item_id", "place": "datetime"}
    frame = train.rename(columns=columns)[list(columns.values())].assign(weight=1.0)
    frame["datetime"] = pd.Timestamp("2020-01-01") + pd.to_timedelta(frame["datetime"], unit="min")
    dataset = Dataset.construct(frame)

    def trainer() -> Trainer:
        quiet: dict[str, Any] = dict.fromkeys(
            ("enable_progress_bar", "enable_model_summary", "logger"), False
        )
        return Trainer(
            max_epochs=1,
            limit_train_batches=1,
            enable_checkpointing=False,
            accelerator="cpu",
            devices=1,
            **quiet,
        )

    model = SASRecModel(
        n_blocks=2,
        n_heads=2,
        n_factors=64,
        session_max_len=50,
        loss="softmax",
        batch_size=128,
        epochs=1,
        get_trainer_func=trainer,
        recommend_torch_device="cpu",
    )
    model.fit(dataset)
    ranked: list[float] = []
    rank = TorchRanker.rank

    def timed(*given: Any, **named: Any) -> Any:
        started = time.perf_counter()
        found = rank(*given, **named)
        ranked.append(time.perf_counter() - started)
        return found

    TorchRanker.rank = timed
    users = valid["user"].to_numpy()
    model.recommend(users[:600], dataset, k=K, filter_viewed=True)
    ranked.clear()
    started = time.perf_counter()
    found = model.recommend(users, dataset, k=K, filter_viewed=True)
    whole_s = time.perf_counter() - started
    assert len(found) == K * len(users), "not every user has a list"
    parts = {"rank_s": sum(ranked), "encode_s": whole_s - sum(ranked)}
    return {"users": len(users), "evaluation_s": whole_s, "batch_s": whole_s, **parts}


def rank_vectors(folder: Path) -> dict[str, float]:
    users, items, seen = (np.load(folder / f"{name}.npy") for name in ("users", "items", "seen"))
    rows = np.repeat(np.arange(len(users)), seen.shape[1])
    known = sparse.csr_matrix(
        (np.ones(len(rows)), (rows, seen.ravel())), shape=(len(users), len(items))
    )
    before = peak_mib()
    ranker = TorchRanker(Distance.DOT, "cpu", torch.from_numpy(users), torch.from_numpy(items))
    ranker.rank(np.arange(64), K, known[:64])
    started = time.perf_counter()
    ranker.rank(np.arange(len(users)), K, known)
    rank_s = time.perf_counter() - started
    return {"rank_s": rank_s, "peak_mib": peak_mib(reset=False) - before}


def peak_mib(reset: bool = True) -> float:
    """Peak memory of this process; ``reset`` restarts it first."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(
        json.dumps(
            recommend(sys.argv[2]) if sys.argv[1] == "model" else rank_vectors(Path(sys.argv[2]))
        )
    )
