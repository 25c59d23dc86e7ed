"""Train BSARec, the authors' own code, on a protocol of ``recsys referee prepare --referee.format
csv``: its lists.

    git clone https://github.com/yehjin-shin/BSARec
    .venv-rectools/bin/python benchmarks/peers/referee_bsarec.py PROTOCOL OUT BSARec/src SET SEED

Parameters, training samples, and constants (those of the authors' log for SET, ``OF_SET``) are
theirs; the loop repeats their ``Trainer`` and ``EarlyStopping``: Adam, softmax over all items, stop
after ten epochs without a better ndcg@20 on validation, keep the best epoch. Differences:

- One CPU thread. Seen items cannot be listed (theirs get a score of 0).
- ``_last_states`` computes their forward pass three times as fast, with torch's own layer norm and
  GELU, the low pass as a matrix, and in the last block only the last position, the only one that is
  read. ``_check_equal`` compares outputs and gradients with their module before training.
- Dropout draws eight bits per number. For their rate of .5 this is the same distribution.
- ``--minutes N`` stops training after this time. The lists say so.
- ``--refit EPOCHS`` trains for this many epochs on training and validation events, without early
  stopping: the number that a first training chose. The authors do not do this; methods of a
  protocol with ``fit: valid`` do.

Runs in an environment with torch and pandas. Writes lists for validation and for test to
OUT/bsarec, those of ``--refit`` to OUT/bsarec-refit.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

SETTINGS = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "hidden_act": "gelu",
    "attention_probs_dropout_prob": 0.5,
    "hidden_dropout_prob": 0.5,
    "initializer_range": 0.02,
    "max_seq_length": 50,
    "batch_size": 256,
}
OF_SET = {
    "LastFM": {"lr": 0.001, "alpha": 0.9, "c": 3},
    "Beauty": {"lr": 0.0005, "alpha": 0.7, "c": 5},
}
EPOCHS = 200
PATIENCE = 10
LIST_LENGTH = 20
Samples = tuple[torch.Tensor, torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("protocol", "out", "source"):
        parser.add_argument(name, type=Path)
    parser.add_argument("set", choices=OF_SET)
    parser.add_argument("seed", type=int)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--refit", type=int, metavar="EPOCHS")
    options = parser.parse_args()
    protocol, seed = options.protocol, options.seed
    sys.path.insert(0, str(options.source))
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
    settings = SimpleNamespace(**SETTINGS, **OF_SET[options.set], item_size=len(names))
    model = BSARecModel(args=settings)
    # RecDataset leaves out the last two of a user: validation and test, or test and this 0
    fitted = [[*items, 0] if options.refit else items for items in histories]
    _, *samples = zip(*RecDataset(settings, fitted, data_type="train"), strict=True)
    inputs, answers = map(torch.stack, samples)
    _check_equal(model, inputs[:256], answers[:256])
    if options.refit:
        for epoch in _epochs(model, (inputs, answers), options.refit):
            print(f"epoch {epoch}", file=sys.stderr, flush=True)
        told = f"{options.refit} epochs, as validation chose before, fitted on train and valid"
    else:
        epochs, trained = _fit(model, (inputs, answers), histories, options.minutes)
        stopped = "" if trained - epochs >= PATIENCE else ", stopped before its early stopping"
        told = f"{trained} epochs{stopped}, the best on validation is {epochs}, fitted on train"
    columns = {
        "protocol": json.loads((protocol / "protocol.json").read_text())["hash"],
        "command": f"BSARec, the authors' code and constants for {options.set}, {told}",
    }
    folder = options.out / ("bsarec-refit" if options.refit else "bsarec")
    folder.mkdir(parents=True, exist_ok=True)
    figures = {}
    for ending, hidden in (("", 1),) if options.refit else ((".valid", 2), ("", 1)):
        lists = _lists(model, histories, hidden)
        rows = [
            (user, names[item], rank + 1)
            for user, items in zip(histories.index, lists, strict=True)
            for rank, item in enumerate(items)
        ]
        pd.DataFrame(rows, columns=["user_id", "item_id", "rank"]).assign(**columns).to_csv(
            folder / f"default{ending}.seed{seed}.csv", index=False
        )
        figures[f"ndcg@10{ending}"] = _ndcg(lists, histories, hidden, 10)
    print(json.dumps({"command": columns["command"], **figures}))


def _events(protocol: Path) -> pd.DataFrame:
    """The events of all splits. A user's last event is test, the one before it validation."""
    columns = {"user_id": str, "item_id": str}
    splits = [
        pd.read_csv(protocol / f"{name}.csv", dtype=columns, keep_default_na=False)
        for name in ("train", "valid", "test")
    ]
    return pd.concat(splits)


def _fit(
    model: torch.nn.Module, samples: Samples, histories: pd.Series, minutes: float
) -> tuple[int, int]:
    """Train with early stopping on validation and keep the best epoch: its number, and the number
    of trained epochs."""
    best, kept, number, began = -math.inf, {}, 0, time.monotonic()
    for epoch in _epochs(model, samples, EPOCHS):
        value = _ndcg(_lists(model, histories, 2), histories, 2, 20)
        spent = (time.monotonic() - began) / 60
        print(
            f"epoch {epoch}: ndcg@20 {value:.4f} on validation, {spent:.1f} minutes",
            file=sys.stderr,
            flush=True,
        )
        if value > best:
            best, kept, number = value, copy.deepcopy(model.state_dict()), epoch
        if epoch - number >= PATIENCE or spent > minutes:
            break
    model.load_state_dict(kept)
    return number, epoch


def _epochs(model: torch.nn.Module, samples: Samples, number: int) -> Iterator[int]:
    """Train for this many epochs.

    Yields
    ------
    int
        The number of each epoch after it, from 1.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=model.args.lr)
    for epoch in range(1, number + 1):
        model.train()
        for batch in torch.randperm(len(samples[0])).split(model.args.batch_size):
            loss = _loss(model, _last_states(model, samples[0][batch]), samples[1][batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield epoch


def _loss(model: torch.nn.Module, states: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(states @ model.item_embeddings.weight.T, answers)


def _last_states(model: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """``model(inputs)[:, -1]``: the state of the last position, batch × width."""
    x = model.item_embeddings(inputs) + model.position_embeddings.weight
    x = _dropped(_normed(model.LayerNorm, x), model)
    mask = model.get_attention_mask(inputs)[:, 0]
    *before, last = model.item_encoder.blocks
    for block in before:
        x = _block(model, block, x, x, mask)
    return _block(model, last, x, x[:, -1:], mask[:, -1:])[:, -1]


def _block(
    model: torch.nn.Module,
    block: torch.nn.Module,
    x: torch.Tensor,
    read: torch.Tensor,
    mask: torch.Tensor,
) -> torch.Tensor:
    """A block for the positions ``read``, which are the last ones of ``x``."""
    layer, feed, rows = block.layer, block.feed_forward, read.shape[1]
    filter_, attention = layer.filter_layer, layer.attention_layer
    spectrum = torch.fft.rfft(torch.eye(x.shape[1]), dim=0, norm="ortho")
    spectrum[filter_.c :] = 0
    low_pass = torch.fft.irfft(spectrum, n=x.shape[1], dim=0, norm="ortho")[-rows:] @ x
    passed = low_pass + filter_.sqrt_beta**2 * (read - low_pass)
    filtered = _normed(filter_.LayerNorm, _dropped(passed, model) + read)
    scale = attention.sqrt_attention_head_size
    queries = attention.query(read)
    if rows < x.shape[1]:  # few queries: project them instead of every key and value
        key, value = attention.key, attention.value
        scores = (queries @ key.weight) @ x.transpose(1, 2) + (queries @ key.bias).unsqueeze(-1)
        shares = _dropped((scores / scale + mask).softmax(-1), model)
        context = (shares @ x) @ value.weight.T + shares.sum(-1, keepdim=True) * value.bias
    else:
        scores = queries @ attention.key(x).transpose(1, 2)
        context = _dropped((scores / scale + mask).softmax(-1), model) @ attention.value(x)
    attended = _normed(attention.LayerNorm, _dropped(attention.dense(context), model) + read)
    mixed = layer.alpha * filtered + (1 - layer.alpha) * attended
    inner = F.gelu(feed.dense_1(mixed))
    return _normed(feed.LayerNorm, _dropped(feed.dense_2(inner), model) + mixed)


def _normed(norm: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, 1e-12)


def _dropped(x: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    """Dropout at the rate of ``SETTINGS``, with eight random bits for each number."""
    if not model.training:
        return x
    dropped = round(256 * SETTINGS["hidden_dropout_prob"])
    words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    kept = (words.view(torch.uint8)[: x.numel()] >= dropped).view(x.shape)
    return x * kept * (256 / (256 - dropped))


def _check_equal(model: torch.nn.Module, inputs: torch.Tensor, answers: torch.Tensor) -> None:
    """Compare the states and gradients of ``_last_states`` with those of the authors' module."""
    model.eval()
    found = []
    for states in (model(inputs)[:, -1], _last_states(model, inputs)):
        loss = _loss(model, states, answers)
        found.append([states, *torch.autograd.grad(loss, list(model.parameters()))])
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@torch.no_grad()
def _lists(model: torch.nn.Module, histories: pd.Series, hidden: int) -> np.ndarray:
    """The best items of every user without their last ``hidden`` events: users × LIST_LENGTH."""
    model.eval()
    length, found = SETTINGS["max_seq_length"], []
    for start in range(0, len(histories), 256):
        visible = [items[:-hidden] for items in histories.iloc[start : start + 256]]
        inputs = torch.tensor([[0] * (length - len(v)) + v[-length:] for v in visible])
        scores = _last_states(model, inputs) @ model.item_embeddings.weight.T
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
    main()
