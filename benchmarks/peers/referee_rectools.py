"""Train RecTools ``SASRecModel`` on a protocol of ``recsys referee prepare --referee.format csv``:
its lists and figures.

Runs in its own environment. Prints one line of JSON: RecTools' own metrics of every file. Writes
lists of every number of epochs to OUT/rectools-sasrec, for validation (trained without it) and for
test. The arguments are PROTOCOL OUT EPOCHS SEEDS [BATCH]: few users need small batches, or the
epochs have too few steps.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import pandas as pd
import torch
from pytorch_lightning import Trainer, seed_everything
from rectools.dataset import Dataset
from rectools.metrics import MAP, MRR, NDCG, HitRate, Precision, Recall, calc_metrics
from rectools.models import SASRecModel

METRICS = {
    "ndcg@10": NDCG(10, divide_by_achievable=True),
    "ndcg@10, all places": NDCG(10),  # RecTools' default divides by the value of ten targets
    "recall@10": Recall(10),
    "precision@10": Precision(10),
    "hit@10": HitRate(10),
    "mrr@10": MRR(10),
    "map@10": MAP(10),
}


def main(protocol: Path, out: Path, epochs: list[int], seeds: list[int], batch: int = 128) -> None:
    torch.set_num_threads(1)
    columns = {"user_id": str, "item_id": str}
    parts = {
        name: pd.read_csv(protocol / f"{name}.csv", dtype=columns, keep_default_na=False)
        for name in ("train", "valid", "test")
    }
    ask = pd.read_csv(protocol / "ask.csv", dtype=str, keep_default_na=False)["user_id"]
    columns = {"protocol": json.loads((protocol / "protocol.json").read_text())["hash"]}
    seen = pd.concat([parts["train"], parts["valid"]])
    found = {}
    for seed in seeds:
        for number in epochs:
            model = fitted(dataset_of(parts["train"]), number, seed, batch)
            columns["command"] = (
                f"RecTools 0.19 SASRec, 64 wide, 2 blocks, softmax, {number} epochs of batches"
                f" of {batch}, fitted on train"
            )
            setting = f"epochs={number}" + (f",batch={batch}" if batch != 128 else "")
            for ending, shown, asked, target in (
                (".valid", parts["train"], parts["valid"]["user_id"].unique(), parts["valid"]),
                ("", seen, ask, parts["test"]),
            ):
                lists = model.recommend(
                    asked,
                    dataset_of(shown),
                    k=20,
                    filter_viewed=True,
                    on_unsupported_targets="ignore",
                )
                path = out / "rectools-sasrec" / f"{setting}{ending}.seed{seed}.csv"
                path.parent.mkdir(parents=True, exist_ok=True)
                lists.assign(**columns).to_csv(path, index=False)
                found[path.name] = calc_metrics(
                    METRICS, lists, target[target["user_id"].isin(asked)]
                )
    print(
        json.dumps(
            {key: {name: float(value) for name, value in of.items()} for key, of in found.items()}
        )
    )


def dataset_of(events: pd.DataFrame) -> Dataset:
    """Turn the order of events into days, since RecTools needs times."""
    times = pd.Timestamp("2020-01-01") + pd.to_timedelta(events["position"], unit="D")
    return Dataset.construct(events[["user_id", "item_id"]].assign(weight=1.0, datetime=times))


def fitted(dataset: Dataset, epochs: int, seed: int, batch: int) -> SASRecModel:
    seed_everything(seed)

    def trainer() -> Trainer:
        quiet: dict[str, Any] = dict.fromkeys(
            ("enable_progress_bar", "enable_model_summary", "logger"), False
        )
        return Trainer(
            max_epochs=epochs, enable_checkpointing=False, accelerator="cpu", devices=1, **quiet
        )

    shape = {
        "n_blocks": 2,
        "n_heads": 2,
        "n_factors": 64,
        "session_max_len": 50,
        "loss": "softmax",
        "batch_size": batch,
    }
    model = SASRecModel(
        **shape, epochs=epochs, get_trainer_func=trainer, recommend_torch_device="cpu"
    )
    model.fit(dataset)
    return model


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(json.loads, sys.argv[3:]))
