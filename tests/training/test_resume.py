"""The checkpoint from which a training resumes when its driver is gone as well."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recsys.config import Config
from recsys.training.checkpoint import Progress, save_checkpoint
from recsys.training.fresh_model import Start
from recsys.training.ray_train import _finished
from recsys.training.resume import (
    find_checkpoints,
    first_sound,
    forget_trainings,
    run_name,
    training_digest,
)
from tests.handmade import small_world
from tests.training.test_training import settings

DIGEST = "0123456789ab"


def checkpoint(storage: Path, run: str, stamp: int, epoch: int) -> Path:
    layer = torch.nn.Linear(2, 2)
    folder = storage / run / f"checkpoint_2026-01-01_00-00-{stamp:02d}.000" / "progress"
    state = {name: tensor.detach() for name, tensor in layer.state_dict().items()}
    save_checkpoint(
        folder, state, state, torch.optim.AdamW(layer.parameters()), Progress(epoch=epoch)
    )
    return folder


def test_newest_undamaged_checkpoint_of_the_same_training_is_used(tmp_path: Path) -> None:
    first, second = run_name(DIGEST), run_name(DIGEST)
    old = checkpoint(tmp_path, first, 1, 1)
    middle = checkpoint(tmp_path, second, 2, 2)
    new = checkpoint(tmp_path, first, 3, 3)
    checkpoint(tmp_path, "train-ba9876543210-00000000", 4, 4)  # another configuration's
    (tmp_path / first / "checkpoint_2026-01-01_00-00-05.000").mkdir()  # nothing arrived in it
    found = find_checkpoints(str(tmp_path), f"train-{DIGEST}")
    assert [Path(place) for place in found[1:]] == [new.parent, middle.parent, old.parent]
    assert find_checkpoints(str(tmp_path), second) == [str(middle.parent)]
    notes: list[str] = []
    (tmp_path / "a").mkdir()
    whole = first_sound(found, "progress", tmp_path / "a", notes.append)
    assert (
        whole is not None
        and (whole / "model.safetensors").read_bytes() == (new / "model.safetensors").read_bytes()
    )
    assert len(notes) == 1 and notes[0].startswith("resuming from") and str(new.parent) in notes[0]


@pytest.mark.parametrize("damage", ["bit", "short", "missing", "no checksums"])
def test_damaged_checkpoint_is_reported_and_skipped(tmp_path: Path, damage: str) -> None:
    run = run_name(DIGEST)
    old, new = checkpoint(tmp_path, run, 1, 1), checkpoint(tmp_path, run, 2, 2)
    file = new / ("checksums.json" if damage == "no checksums" else "optimizer.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content if damage == "bit" else content[:-1])
    if damage in ("missing", "no checksums"):
        file.unlink()
    notes: list[str] = []
    found = find_checkpoints(str(tmp_path), f"train-{DIGEST}")
    whole = first_sound(found, "progress", tmp_path / "copies", notes.append)
    assert (
        whole is not None
        and (whole / "progress.json").read_text() == (old / "progress.json").read_text()
    )
    assert "is damaged" in notes[0] and "trying the one before" in notes[0]
    assert first_sound(found[:1], "progress", tmp_path / "others", notes.append) is None


def test_damaged_last_checkpoint_is_not_a_finished_training(tmp_path: Path) -> None:
    """Its folder came with only some of its files: the disk was full."""
    run = run_name(DIGEST)
    checkpoint(tmp_path, run, 1, 1)
    (tmp_path / run / "checkpoint_2026-01-01_00-00-02.000" / "trained").mkdir(parents=True)
    found = find_checkpoints(str(tmp_path), f"train-{DIGEST}")
    assert _finished(found) is None
    whole = first_sound(found, "progress", tmp_path / "copies", print)
    assert whole is not None and (whole / "progress.json").is_file()


def test_empty_storage_has_no_checkpoint(tmp_path: Path) -> None:
    assert find_checkpoints(str(tmp_path / "never"), f"train-{DIGEST}") == []
    assert first_sound([], "progress", tmp_path, print) is None


def test_only_the_last_training_is_kept(tmp_path: Path) -> None:
    runs = [run_name(DIGEST) for _ in range(3)]
    for number, run in enumerate(runs):
        checkpoint(tmp_path, run, number, number)
    (tmp_path / "mine").mkdir()
    forget_trainings(str(tmp_path), keep=runs[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["mine", runs[1]])


def test_digest_covers_everything_that_decides_the_result(tmp_path: Path) -> None:
    dataset = small_world(tmp_path)
    base = training_digest(settings(), dataset, None)
    same: list[Config] = [settings(num_workers=2), settings(threads=3), settings(max_failures=0)]
    other = [settings(lr=0.02), settings(epochs=5), settings(checkpoint_steps=7)]
    assert {training_digest(config, dataset, None) for config in same} == {base}
    starts = [Start({"a": torch.zeros(2)}), Start({"a": torch.ones(2)})]
    digests = {training_digest(config, dataset, None) for config in other}
    digests |= {training_digest(settings(), dataset, start) for start in starts}
    assert len(digests) == 5 and base not in digests
