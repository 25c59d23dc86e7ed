"""A user error that only a training worker can find reaches the user as its message, at any
time.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from recsys.config import Config, build_config
from recsys.data.dataset import PreparedDataset
from recsys.data.repeats import repeats_line
from recsys.errors import DataError, UserError
from recsys.evaluation.validation import Validator
from recsys.training.context import TrainContext
from recsys.training.phases import fit
from tests.handmade import leave_last, write_dataset


def _dataset(folder: Path, repeats: int, others: int = 0) -> PreparedDataset:
    """Users whose validation and test items they had before, and users with new ones."""
    histories = [leave_last(0, 1, 2, 0, 1) for _ in range(repeats)] + [
        leave_last(0, 1, 2, 3, 4) for _ in range(others)
    ]
    return write_dataset(folder / "dataset", histories, num_items=6)


def _config(folder: Path, train: dict[str, Any]) -> Config:
    tree = {
        "run": {"dir": str(folder / "run")},
        "data": {"text": {"enabled": False}},
        "model": {
            "width": 8,
            "item": {"text": False},
            "granularities": {"collaborative": {"enabled": True}},
        },
        "train": {"epochs": 1, "threads": 1, "metric": "ndcg@5", "refit": False, **train},
    }
    return build_config(tree)


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_error_before_the_first_checkpoint_is_the_message(tmp_path: Path, ray_local: None) -> None:
    from recsys.training.ray_train import train_on_ray

    config = _config(tmp_path, {"history_mask_rate": 0.3})
    with pytest.raises(UserError, match=r"history_mask_rate 0\.3.*has an order"):
        train_on_ray(
            config,
            _dataset(tmp_path, 0, 6),
            Validator.of(config.train, config.evaluate),
            lambda values: None,
        )


def test_queue_of_reports_starts_again_after_its_process_is_lost(ray_local: None) -> None:
    """The workers put reports into it: without a restart, each of their attempts would fail."""
    import ray

    from recsys.training.ray_train import queue_on_driver

    def process() -> int:
        """The process of the queue; 0 while it starts."""
        try:
            return int(ray.get(queue.actor.__ray_call__.remote(lambda _: os.getpid())))
        except ray.exceptions.RayActorError:
            return 0

    queue = queue_on_driver()
    queue.put("before")
    first = process()
    ray.kill(queue.actor, no_restart=False)  # does not wait for the end of the process
    end = time.monotonic() + 60
    while process() in (first, 0) and time.monotonic() < end:
        time.sleep(0.1)
    queue.put("after")
    assert queue.get(timeout=60) == "after"
    queue.shutdown(force=True)


def test_validation_with_only_repeats_names_the_setting(tmp_path: Path) -> None:
    config = _config(tmp_path, {})
    with pytest.raises(DataError, match=r"had before; set evaluate\.exclude_seen false"):
        fit(
            config,
            _dataset(tmp_path, 6),
            Validator.of(config.train, config.evaluate),
            TrainContext(),
        )


def test_many_repeats_in_validation_are_noted_once(tmp_path: Path) -> None:
    config, notes = _config(tmp_path, {"epochs": 3}), list[str]()
    fit(
        config,
        _dataset(tmp_path, 6, 2),
        Validator.of(config.train, config.evaluate),
        TrainContext(note=notes.append),
    )
    assert notes == [repeats_line("validation", 6, 8)]
    assert (
        notes[0].startswith("warning: 6 of 8 validation users")
        and "evaluate.exclude_seen false" in notes[0]
    )


def test_few_repeats_are_reported_without_advice() -> None:
    assert repeats_line("test", 0, 40) == ""
    few = repeats_line("test", 1, 40)
    assert few.startswith("1 of 40 test users") and "39 users" in few and "warning" not in few
