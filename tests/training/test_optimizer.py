"""Row-wise updates: equal to AdamW if all rows are used, no change for unused rows, two workers
equal one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from recsys.config import Config, TrainConfig, build_config
from recsys.training.context import TrainContext
from recsys.training.optimizer import build_optimizer, clip_gradients
from tests.training.test_training import Interrupted, cycles, of_two, run, stop_inside

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS, WIDTH = 6, 3


class Table(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.rows = nn.Embedding(ROWS, WIDTH, sparse=sparse)
        self.out = nn.Linear(WIDTH, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.out(self.rows(ids))).square().sum()


def trained(sparse: bool, steps: list[list[int]], clip: float) -> tuple[Table, Any]:
    torch.manual_seed(1)
    table = Table(sparse)
    optimizer = build_optimizer(table, TrainConfig(lr=0.05, weight_decay=0.1))
    for ids in steps:
        optimizer.zero_grad(set_to_none=True)
        table(torch.tensor(ids)).backward()
        clip_gradients(table, clip)
        optimizer.step()
    return table, optimizer


@pytest.mark.parametrize("clip", [1e-3, 1e3])
def test_equals_adamw_if_all_rows_are_touched(clip: float) -> None:
    """A row that is used twice in a step is updated once, with the sum of its gradients."""
    steps = [[0, 1, 2, 3, 4, 5, 5], [5, 4, 3, 2, 1, 0, 0], [0, 1, 2, 3, 4, 5, 2]]
    rows, by_rows = trained(True, steps, clip)
    dense, adamw = trained(False, steps, clip)
    torch.testing.assert_close(rows.rows.weight, dense.rows.weight)
    torch.testing.assert_close(rows.out.weight, dense.out.weight)
    moments = [one.state[table.rows.weight] for one, table in ((by_rows, rows), (adamw, dense))]
    torch.testing.assert_close(moments[0]["exp_avg_sq"], moments[1]["exp_avg_sq"])
    assert float(moments[0]["step"]) == float(moments[1]["step"]) == 3


def test_untouched_rows_stay() -> None:
    before = trained(True, [], 1.0)[0].rows.weight
    after = trained(True, [[0, 2], [2]], 1.0)[0].rows.weight
    moved = (before != after).all(1)
    assert moved.tolist() == [True, False, True, False, False, False]
    decayed = trained(False, [[0, 2], [2]], 1.0)[0].rows.weight
    assert (decayed != before).all(), "AdamW moves all of them"


def large(**train: Any) -> Config:
    """A small dataset with the methods for large ones: sampled graph, sampled softmax, row-wise
    updates.
    """
    on: dict[str, Any] = {"enabled": True, "dropout": 0.0}
    granularities = {"evolution": {**on, "input_dropout": 0.0}, "behaviour": {**on, "heads": 2}}
    granularities["collaborative"] = {"enabled": True, "max_edges": 0, "fanout": 2}
    model = {"width": 16, "max_history": 10, "item": {"text_whiten": 4, "id_dropout": 0.0}}
    loss = {"kind": "sampled_softmax", "num_negatives": 8, "max_dense_items": 0}
    settings = {
        "epochs": 3,
        "batch_size": 15,
        "lr": 0.01,
        "metric": "ndcg@5",
        "refit": False,
        "loss": loss,
        **train,
    }
    tree = {"granularities": granularities, "fusion": {"signal_dropout": 0.0}, **model}
    return build_config({"model": tree, "train": settings, "evaluate": {"ks": [5]}})


def test_two_workers_touch_the_rows_of_one(tmp_path: Path) -> None:
    dataset, config = cycles(tmp_path / "data"), large()
    alone = run(config, dataset)
    both = of_two(config, dataset, tmp_path)
    for one, two in zip(alone.history, both["history"], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    torch.testing.assert_close(both["items"], alone.frozen.item_vectors_ND, rtol=1e-2, atol=2e-3)


def test_resumed_within_an_epoch_equals_uninterrupted(tmp_path: Path) -> None:
    dataset, config = cycles(tmp_path / "data"), large(batch_size=4, checkpoint_steps=4)
    whole = run(config, dataset)
    with pytest.raises(Interrupted):
        run(config, dataset, stop_inside(tmp_path, 3))
    resumed = run(config, dataset, TrainContext(resume_from=tmp_path / "inside-3"))
    assert [report["loss"] for report in resumed.history] == [
        report["loss"] for report in whole.history
    ]
    torch.testing.assert_close(
        resumed.frozen.item_vectors_ND, whole.frozen.item_vectors_ND, rtol=0, atol=0
    )


def test_sampled_training_learns_like_the_full_one(tmp_path: Path) -> None:
    dataset, best = cycles(tmp_path / "data"), []
    for limit in (0, 10**6):
        config = large(epochs=20, patience=20, lr=0.02)
        config.model.granularities.collaborative.max_edges = config.train.loss.max_dense_items = (
            limit
        )
        best.append(max(report["ndcg@5"] for report in run(config, dataset).history))
    sampled, whole = best
    assert whole > 0.8, "a chance list of five has 0.15"
    assert sampled > 0.9 * whole
