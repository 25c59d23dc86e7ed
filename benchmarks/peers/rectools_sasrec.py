"""RecTools ``SASRecModel`` on sequences: seconds of each epoch, and ndcg@10 of the next item.

Runs in its own environment. Prints one line of JSON. The constants are those of the benchmark:
width 64, 2 blocks, full softmax, 50 events.
"""

from __future__ import annotations

import json
import math
import sys
import time
import warnings

warnings.filterwarnings("ignore")

import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer
from rectools.dataset import Dataset
from rectools.models import SASRecModel


class Clock(Callback):
    """Seconds of the epochs; kept in the class, as the model copies its callbacks."""

    seconds: list[float] = []

    def on_train_epoch_start(self, *_: object) -> None:
        self.started = time.perf_counter()

    def on_train_epoch_end(self, *_: object) -> None:
        self.seconds.append(time.perf_counter() - self.started)


def main(path: str, epochs: int) -> None:
    torch.set_num_threads(1)
    events = pd.read_csv(path)
    train, valid = events[~events["held_out"]], events[events["held_out"]]
    columns = {"user": "user_id", "item": "item_id", "place": "datetime"}
    frame = train.rename(columns=columns)[list(columns.values())].assign(weight=1.0)
    frame["datetime"] = pd.Timestamp("2020-01-01") + pd.to_timedelta(frame["datetime"], unit="min")
    dataset = Dataset.construct(frame)

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=epochs,
            min_epochs=epochs,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
            enable_checkpointing=False,
            accelerator="cpu",
            devices=1,
            callbacks=[Clock()],
        )

    model = SASRecModel(
        n_blocks=2,
        n_heads=2,
        n_factors=64,
        session_max_len=50,
        loss="softmax",
        batch_size=128,
        epochs=epochs,
        get_trainer_func=trainer,
        recommend_torch_device="cpu",
    )
    model.fit(dataset)
    lengths = train.groupby("user").size()
    started = time.perf_counter()
    found = model.recommend(valid["user"].to_numpy(), dataset, k=10, filter_viewed=True)
    recommend_s = time.perf_counter() - started
    wanted = dict(zip(valid["user"], valid["item"], strict=True))
    hits = found[found["item_id"] == found["user_id"].map(wanted)]
    ndcg = sum(1 / math.log2(rank + 1) for rank in hits["rank"]) / len(wanted)
    targets = int((lengths - 1).clip(upper=50).sum())
    print(
        json.dumps(
            {
                "targets": targets,
                "epoch_s": Clock.seconds,
                "ndcg@10": ndcg,
                "users": len(wanted),
                "rank_s": recommend_s,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
