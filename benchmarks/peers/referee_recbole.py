"""Train a RecBole model on a protocol of ``recsys referee prepare --referee.format csv``: its lists
and figures.

Runs in its own environment. Prints one line of JSON: RecBole's own metrics, as its trainer
evaluates. Full ranking masks seen items for general models and nothing for sequential ones
(protocol mask seen, none); ``uni100`` ranks the target and 100 items that RecBole samples. With
``"stopping_step": 10`` among the settings, RecBole stops after ten epochs without a better ndcg@10
on validation and keeps the best epoch; else it trains all epochs.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import numpy as np
import pandas as pd
import scipy.sparse
import torch

# RecBole expects old SciPy
scipy.sparse.dok_matrix._update = lambda matrix, entries: matrix._dict.update(entries)
torch_load = torch.load
# RecBole's own files, with newer torch
torch.load = lambda *a, **k: torch_load(*a, **{"weights_only": False, **k})

from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed
from recbole.utils.case_study import full_sort_topk

SETTINGS = {
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "MAX_ITEM_LIST_LENGTH": 50,
    "metrics": ["NDCG", "Hit", "MRR", "Recall", "Precision", "MAP"],
    "topk": [10],
    "valid_metric": "NDCG@10",
    "metric_decimal_place": 6,
    "use_gpu": False,
    "show_progress": False,
    "nproc": 1,
    "eval_batch_size": 256,
    "train_batch_size": 1024,
}
OF_MODEL = {
    "SASRec": {
        "hidden_size": 64,
        "inner_size": 64,
        "loss_type": "CE",
        "train_neg_sample_args": None,
    },
    "LightGCN": {
        "embedding_size": 64,
        "n_layers": 2,
        "reg_weight": 1e-4,
        "eval_batch_size": 4096 * 256,
    },
}


def main(
    protocol: Path, out: Path, name: str, epochs: int, mode: str, more: dict[str, object]
) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    rules = json.loads((protocol / "protocol.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        _write_events(protocol, Path(folder))
        arguments = {
            "split": {"LS": "valid_and_test"},
            "order": "TO",
            "group_by": "user",
            "mode": mode,
        }
        places = {
            "data_path": folder,
            "checkpoint_dir": folder,
            "epochs": epochs,
            "eval_args": arguments,
        }
        # by default, no validation
        never = {
            "eval_step": epochs + 1,
            "stopping_step": epochs + 1,
            "seed": rules["rules"]["seed"],
        }
        stops = {"eval_step": 1} if "stopping_step" in more else {}
        config = Config(
            name,
            "events",
            config_dict={**SETTINGS, **OF_MODEL[name], **places, **never, **stops, **more},
        )
        init_seed(config["seed"], reproducibility=True)
        dataset = create_dataset(config)
        train, valid, test = data_preparation(config, dataset)
        model = get_model(name)(config, train.dataset)
        trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
        trainer.fit(train, valid if stops else None, saved=bool(stops), show_progress=False)
        trained = f"{epochs} epochs"
        if stops:
            last = max(trainer.train_loss_dict) + 1
            number = torch.load(trainer.saved_model_file)["epoch"] + 1
            early = "" if last < epochs else ", stopped before its early stopping"
            trained = f"{last} epochs{early}, the best on validation is {number}"
        np.random.seed(rules["rules"]["seed"])
        metrics = trainer.evaluate(test, load_best_model=bool(stops), show_progress=False)
        model.eval()
        if mode == "full":
            lists = _best(protocol, dataset, model, test)
        else:
            np.random.seed(rules["rules"]["seed"])
            lists = _scored(dataset, model, test)
    lists = lists.assign(
        protocol=rules["hash"],
        command=f"RecBole 1.2.1 {name}, {trained}, fitted on train {more or ''}".strip(),
    )
    out.mkdir(parents=True, exist_ok=True)
    lists.to_csv(out / f"recbole-{name.lower()}.csv", index=False)
    print(json.dumps({key: float(value) for key, value in metrics.items()}))


def _write_events(protocol: Path, folder: Path) -> None:
    """Write train, then validation, then test, so that RecBole numbers users and items in that
    order."""
    columns = {"user_id": str, "item_id": str}
    parts = [
        pd.read_csv(protocol / f"{name}.csv", dtype=columns) for name in ("train", "valid", "test")
    ]
    frame = pd.concat(parts)[["user_id", "item_id", "position"]]
    frame.columns = ["user_id:token", "item_id:token", "timestamp:float"]
    (folder / "events").mkdir()
    frame.to_csv(folder / "events/events.inter", sep="\t", index=False)


def _best(protocol: Path, dataset: object, model: torch.nn.Module, test: object) -> pd.DataFrame:
    """The 20 best items of every user, masked as in RecBole's evaluation."""
    ask = pd.read_csv(protocol / "ask.csv", dtype=str, keep_default_na=False)["user_id"]
    found = []
    for start in range(0, len(ask), 256):
        users = ask.to_numpy()[start : start + 256]
        scores, items = full_sort_topk(
            dataset.token2id("user_id", users), model, test, k=20, device="cpu"
        )
        names = dataset.id2token("item_id", items.numpy())
        for user, row, values in zip(users, names, scores.tolist(), strict=True):
            found += [
                (user, item, place + 1, value)
                for place, (item, value) in enumerate(zip(row, values, strict=True))
            ]
    return pd.DataFrame(found, columns=["user_id", "item_id", "rank", "score"])


def _scored(dataset: object, model: torch.nn.Module, test: object) -> pd.DataFrame:
    """Scores of the items that RecBole ranks: the target and its samples."""
    found = []
    with torch.no_grad():
        for batch, *_ in test:
            users, items = (
                dataset.id2token(key, batch[key].numpy()) for key in ("user_id", "item_id")
            )
            found.append(
                pd.DataFrame(
                    {"user_id": users, "item_id": items, "score": model.predict(batch).numpy()}
                )
            )
    return pd.concat(found).drop_duplicates(["user_id", "item_id"])


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        sys.argv[3],
        int(sys.argv[4]),
        sys.argv[5],
        json.loads(sys.argv[6]),
    )
