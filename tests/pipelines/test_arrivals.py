"""Files that arrive while a storage does not answer are appended once it answers again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.plumbing.progress import Progress
from pipelines.plumbing.run_folder import RunFolder
from pipelines.updating import arrivals
from pipelines.updating.arrivals import Arrivals
from recsys.config import build_config
from recsys.errors import DataError, StorageError

NO_ANSWER = StorageError("s3://bucket/run: the server does not answer")


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Arrivals, list[Any]]:
    """Arrivals of two files, and what each append does: an exception to raise, or None."""
    (tmp_path / "in").mkdir()
    for name in ("monday", "tuesday"):
        (tmp_path / "in" / f"{name}.csv").write_text("user_id,item_id\nu,i\n")
    outcomes: list[Any] = []

    def append(*_: Any, **__: Any) -> Any:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return SimpleNamespace(manifest=SimpleNamespace(counts={"events": 1}), root=str(tmp_path))

    monkeypatch.setattr(arrivals, "prepare", append)
    monkeypatch.setattr(arrivals, "with_newer_events", lambda config: config)
    update = {"events": [str(tmp_path / "in" / "*.csv")], "follow": "1s"}
    config = build_config({"run": {"dir": str(tmp_path)}, "update": update})
    earlier: Any = None
    made = Arrivals(config, RunFolder(tmp_path, Progress(None)), earlier)
    made._own = RunFolder(tmp_path, Progress(None, tmp_path / "run.log"))
    return made, outcomes


def look(watched: Arrivals) -> list[str]:
    """One look; returns the files that it appended or tried to append."""
    if ready := watched._look():
        watched._append(ready)
    return [Path(path).stem for path in ready]


def test_outage_while_appending_is_tried_again(
    watched: tuple[Arrivals, list[Any]], tmp_path: Path
) -> None:
    files, outcomes = watched
    outcomes += [NO_ANSWER] * 6 + [None]
    both = ["monday", "tuesday"]
    assert [sorted(look(files)) for _ in range(5)] == [[], both, both, both, []]
    arrived = files.next(1)
    assert arrived is not None and arrived.num_files == 2 and not outcomes
    said = (tmp_path / "run.log").read_text(encoding="utf-8")
    assert said.count("does not answer") == 2, "once for each file"


def test_file_with_an_outage_does_not_hold_up_others_or_the_end(
    watched: tuple[Arrivals, list[Any]],
) -> None:
    files, outcomes = watched
    look(files)
    outcomes += [NO_ANSWER, DataError("bad rows"), *[NO_ANSWER] * 3]
    assert len(look(files)) == 2 and look(files) == look(files) and not outcomes
    files._last_arrival = -1000.0
    assert files.next(1) is None, "idle: only the file of the outage is left"


def test_file_that_failed_because_of_another_table_is_tried_when_that_table_changes(
    watched: tuple[Arrivals, list[Any]], tmp_path: Path
) -> None:
    files, outcomes = watched
    (tmp_path / "items.csv").write_text("item_id,ti")
    source = {"kind": "canonical", "events": ["none.csv"], "items": [str(tmp_path / "items.csv")]}
    update = {"events": [str(tmp_path / "in" / "*.csv")], "follow": "1s"}
    files._config = build_config({"data": {"source": source}, "update": update})
    look(files)
    outcomes += [DataError("the catalogue is damaged")] * 3
    assert len(look(files)) == 2 and look(files) == [] and not outcomes
    (tmp_path / "items.csv").write_text("item_id,title\ni,a title\n")
    outcomes += [DataError("bad rows"), DataError("bad rows"), None]
    assert len(look(files)) == 2 and look(files) == [] and not outcomes
    said = (tmp_path / "run.log").read_text(encoding="utf-8")
    assert said.count("is skipped until it, or another table, changes") == 3
    (tmp_path / "items.csv").unlink()
    outcomes += [None]
    assert len(look(files)) == 1 and look(files) == [], "a file that was read is not read again"


def test_outage_while_listing_is_tried_again_but_not_at_the_first_look(
    watched: tuple[Arrivals, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    files, _ = watched
    find: Callable[..., Any] = arrivals.find

    def failing(*_: Any) -> Any:
        raise NO_ANSWER

    monkeypatch.setattr(arrivals, "find", failing)
    with pytest.raises(StorageError):
        files._look()
    monkeypatch.setattr(arrivals, "find", find)
    assert not files._look()
    monkeypatch.setattr(arrivals, "find", failing)
    assert not files._look()
    monkeypatch.setattr(arrivals, "find", find)
    assert not files._look() and len(files._look()) == 2
