"""RecBole ``SASRec`` on sequences: seconds of each epoch, and ndcg@10 of the next item.

Runs in its own environment. Prints one line of JSON. The constants are those of the benchmark:
width 64, 2 blocks, full softmax, 50 events.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import pandas as pd
import torch

torch_load = torch.load
# RecBole's own files, with newer torch
torch.load = lambda *a, **k: torch_load(*a, **{"weights_only": False, **k})

from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer


class Timed(Trainer):
    """Record the seconds of each epoch."""

    seconds: list[float] = []

    def _train_epoch(self, *given: object, **named: object) -> object:
        started = time.perf_counter()
        loss = super()._train_epoch(*given, **named)
        self.seconds.append(time.perf_counter() - started)
        return loss


def main(path: str, epochs: int) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    events = pd.read_csv(path)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "events"
        place.mkdir()
        frame = events.rename(
            columns={"user": "user_id:token", "item": "item_id:token", "place": "timestamp:float"}
        )
        frame.drop(columns="held_out").to_csv(place / "events.inter", sep="\t", index=False)
        settings = {
            "data_path": folder,
            "checkpoint_dir": folder,
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "MAX_ITEM_LIST_LENGTH": 50,
            "hidden_size": 64,
            "inner_size": 64,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dropout_prob": 0.2,
            "attn_dropout_prob": 0.2,
            "loss_type": "CE",
            "train_neg_sample_args": None,
            "epochs": epochs,
            "train_batch_size": 2048,
            "eval_batch_size": 256,
            "eval_step": epochs,
            "stopping_step": epochs + 1,
            "eval_args": {
                "split": {"LS": "test_only"},
                "order": "TO",
                "group_by": "user",
                "mode": "full",
            },
            "metrics": ["NDCG"],
            "topk": [10],
            "valid_metric": "NDCG@10",
            "use_gpu": False,
            "show_progress": False,
            "nproc": 1,
        }
        config = Config(model="SASRec", dataset="events", config_dict=settings)
        dataset = create_dataset(config)
        train, _, test = data_preparation(config, dataset)
        model = SASRec(config, train.dataset)
        trainer = Timed(config, model)
        trainer.fit(train, None, saved=False, show_progress=False)
        metrics = trainer.evaluate(test, load_best_model=False, show_progress=False)
    print(
        json.dumps(
            {
                "targets": len(train.dataset),
                "epoch_s": Timed.seconds,
                "ndcg@10": float(metrics["ndcg@10"]),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
