"""The softmax of a training step leaves out the items that lists leave out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recsys.config import build_config
from recsys.config.contradictions import check_settings
from recsys.data.batches import every_position
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.errors import ConfigError
from recsys.softmax import LeftOut
from recsys.training.fresh_model import build_graphs, build_model
from recsys.training.step import StepLoss
from tests.handmade import DAY, write_dataset

VIEW, BUY = 0, 1


def world(folder: Path, **options: Any) -> PreparedDataset:
    """Two users; both have item 0 twice, item 5 is in the test split only."""
    rows = [
        [
            (0, VIEW, DAY, Split.TRAIN),
            (1, BUY, DAY + 1, Split.TRAIN),
            (0, BUY, DAY + 2, Split.TRAIN),
        ],
        [
            (2, BUY, DAY, Split.TRAIN),
            (3, VIEW, DAY + 1, Split.TRAIN),
            (5, BUY, DAY + 2, Split.TEST),
        ],
    ]
    return write_dataset(folder, rows, 6, event_types=("view", "buy"), **options)


def step_loss(dataset: PreparedDataset, lists_leave_out_seen: bool, **loss: Any) -> StepLoss:
    config = build_config(
        {
            "model": {"item": {"text": False}, "granularities": {"behaviour": {"enabled": True}}},
            "train": {"loss": loss},
        }
    )
    model = build_model(config.model, config.train, dataset, Split.TRAIN).eval()
    graphs = build_graphs(dataset, Split.TRAIN, model=model)
    return StepLoss(model, graphs, config.train.loss, dataset, lists_leave_out_seen)


def left_out(dataset: PreparedDataset, **loss: Any) -> list[list[int]]:
    """The items that every query of an epoch leaves out, as rows of the items of the softmax."""
    made, found = step_loss(dataset, True, **loss), []

    class Recorder:
        def __call__(self, users_BD: torch.Tensor, *_: Any, left_out: LeftOut) -> torch.Tensor:
            numbers_B = torch.bincount(left_out.queries_H, minlength=len(users_BD))
            found.extend(part.tolist() for part in left_out.items_H.split(numbers_B.tolist()))
            return torch.zeros(())

    made.sum = Recorder()  # type: ignore[assignment]
    histories = dataset.histories().through(Split.TRAIN)
    made(every_position(histories, 10, np.arange(len(histories))), (0, 0, 0))
    return found


def test_a_query_leaves_out_all_items_before_it(tmp_path: Path) -> None:
    # the users of the two shards: item 0 is the target of the second query, which has had it
    assert left_out(world(tmp_path), kind="full_softmax") == [[0], [0, 1], [2]]


def test_types_that_are_not_predicted_are_not_left_out(tmp_path: Path) -> None:
    found = left_out(world(tmp_path, targets=["buy"]), kind="full_softmax")
    assert found == [[], [1]], "lists leave out bought items only; views are no targets"


def test_items_have_the_numbers_of_the_softmax(tmp_path: Path) -> None:
    """Without new items as negatives, the softmax has the items with training events only: 0, 1, 2,
    3.
    """
    dataset = world(tmp_path)
    assert left_out(dataset, kind="full_softmax", new_items=False) == [[0], [0, 1], [2]]
    sampled = left_out(dataset, kind="sampled_softmax", num_negatives=1)
    assert len(sampled) == 3 and sampled[0][0] == sampled[1][0]


@pytest.mark.parametrize(
    ("seen_items", "lists_leave_out_seen", "smoothing", "expected"),
    [
        ("auto", True, 0.0, True),
        ("auto", False, 0.0, False),
        ("auto", True, 0.1, False),
        ("no", False, 0.0, True),
        ("yes", True, 0.0, False),
    ],
)
def test_auto_follows_the_lists(
    tmp_path: Path, seen_items: str, lists_leave_out_seen: bool, smoothing: float, expected: bool
) -> None:
    loss = {"kind": "full_softmax", "seen_items": seen_items, "label_smoothing": smoothing}
    assert step_loss(world(tmp_path), lists_leave_out_seen, **loss).leaves_out is expected


def test_in_sets_the_softmax_holds_all_items(tmp_path: Path) -> None:
    assert not step_loss(world(tmp_path, ordered=False), True).leaves_out


def test_seen_items_that_are_few_stay_in_the_softmax(tmp_path: Path) -> None:
    rows = [[(item, BUY, DAY + item, Split.TRAIN) for item in range(6)]] * 4
    many = write_dataset(tmp_path / "many", rows, 150)
    few = write_dataset(tmp_path / "few", rows, 151)  # three seen items are less than 2 %
    assert step_loss(many, True).leaves_out and not step_loss(few, True).leaves_out
    assert step_loss(few, True, seen_items="no").leaves_out


def test_contradicting_settings_are_named() -> None:
    loss = {"seen_items": "no", "label_smoothing": 0.1}
    tree = {
        "data": {"source": {"kind": "synthetic"}},
        "model": {"granularities": {"behaviour": {"enabled": True}}},
        "train": {"loss": loss},
    }
    with pytest.raises(ConfigError, match=r"train\.loss\.seen_items no leaves some out"):
        check_settings(build_config(tree), ("train",))
