"""Train BSARec, the authors' own code, on a protocol of ``recsys referee prepare --referee.format
csv``: its lists.

    git clone https://github.com/yehjin-shin/BSARec
    .venv-rectools/bin/python benchmarks/peers/referee_bsarec.py PROTOCOL OUT BSARec/src SEED

Model, training samples, and constants (those of the authors' log for Last.fm, ``SETTINGS``) are
theirs; the loop repeats their ``Trainer`` and ``EarlyStopping``: Adam, softmax over all items, stop
after ten epochs without a better ndcg@20 on validation, keep the best epoch. Differences: one CPU
thread, and seen items cannot be listed (theirs get a score of 0). Runs in an environment with torch
and pandas. Writes lists for validation and for test to OUT/bsarec.
"""

from __future__ import annotations

import copy
import json
import math
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

SETTINGS = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "hidden_act": "gelu",
    "attention_probs_dropout_prob": 0.5,
    "hidden_dropout_prob": 0.5,
    "initializer_range": 0.02,
    "max_seq_length": 50,
    "c": 3,
    "alpha": 0.9,
    "batch_size": 256,
}
LEARNING_RATE = 0.001
EPOCHS = 200
PATIENCE = 10
LIST_LENGTH = 20


def main(protocol: Path, out: Path, source: Path, seed: int) -> None:
    sys.path.insert(0, str(source))
    from dataset import RecDataset
    from model.bsarec import BSARecModel

    torch.set_num_threads(1)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    events = _events(protocol)
    names = ["", *sorted(events["item_id"].unique())]  # 0 pads a history
    events["item"] = events["item_id"].map({name: code for code, name in enumerate(names)})
    histories = events.sort_values("position", kind="stable").groupby("user_id")["item"].agg(list)
    settings = SimpleNamespace(**SETTINGS, item_size=len(names))
    model = BSARecModel(args=settings)
    batches = DataLoader(
        RecDataset(settings, list(histories), data_type="train"),
        batch_size=settings.batch_size,
        shuffle=True,
    )
    epochs = _fit(model, batches, histories)
    columns = {
        "protocol": json.loads((protocol / "protocol.json").read_text())["hash"],
        "command": f"BSARec, the authors' code and constants for Last.fm, {epochs} epochs chosen"
        " on validation, fitted on train",
    }
    (out / "bsarec").mkdir(parents=True, exist_ok=True)
    figures = {}
    for ending, hidden in ((".valid", 2), ("", 1)):
        lists = _lists(model, histories, hidden)
        rows = [
            (user, names[item], rank + 1)
            for user, items in zip(histories.index, lists, strict=True)
            for rank, item in enumerate(items)
        ]
        pd.DataFrame(rows, columns=["user_id", "item_id", "rank"]).assign(**columns).to_csv(
            out / "bsarec" / f"default{ending}.seed{seed}.csv", index=False
        )
        figures[f"ndcg@10{ending}"] = _ndcg(lists, histories, hidden, 10)
    print(json.dumps({"epochs": epochs, **figures}))


def _events(protocol: Path) -> pd.DataFrame:
    """The events of all splits. A user's last event is test, the one before it validation."""
    columns = {"user_id": str, "item_id": str}
    splits = [
        pd.read_csv(protocol / f"{name}.csv", dtype=columns, keep_default_na=False)
        for name in ("train", "valid", "test")
    ]
    return pd.concat(splits)


def _fit(model: torch.nn.Module, batches: DataLoader, histories: pd.Series) -> int:
    """Train with early stopping on validation and keep the best epoch: its number."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    best, kept, number = -math.inf, {}, 0
    for epoch in range(1, EPOCHS + 1):
        model.train()
        for _, inputs, answers in batches:
            loss = model.calculate_loss(inputs, answers)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        value = _ndcg(_lists(model, histories, 2), histories, 2, 20)
        print(f"epoch {epoch}: ndcg@20 {value:.4f} on validation", file=sys.stderr, flush=True)
        if value > best:
            best, kept, number = value, copy.deepcopy(model.state_dict()), epoch
        elif epoch - number >= PATIENCE:
            break
    model.load_state_dict(kept)
    return number


@torch.no_grad()
def _lists(model: torch.nn.Module, histories: pd.Series, hidden: int) -> np.ndarray:
    """The best items of every user without their last ``hidden`` events: users × LIST_LENGTH."""
    model.eval()
    length, found = SETTINGS["max_seq_length"], []
    for start in range(0, len(histories), 256):
        visible = [items[:-hidden] for items in histories.iloc[start : start + 256]]
        inputs = torch.tensor([[0] * (length - len(v)) + v[-length:] for v in visible])
        scores = model.predict(inputs)[:, -1] @ model.item_embeddings.weight.T
        scores[:, 0] = -math.inf
        for row, items in zip(scores, visible, strict=True):
            row[items] = -math.inf
        found.append(scores.topk(LIST_LENGTH).indices.numpy())
    return np.concatenate(found)


def _ndcg(lists: np.ndarray, histories: pd.Series, hidden: int, k: int) -> float:
    targets = np.array([items[-hidden] for items in histories])
    users, ranks = np.nonzero(lists[:, :k] == targets[:, None])
    return float((1 / np.log2(ranks + 2)).sum() / len(lists))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
