"""Tasks in threads of this process: the files of Ray, errors, order, and when Ray is used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines import prepare as stage
from pipelines.cli import main
from recsys.config import Config, build_config
from recsys.errors import DataError
from recsys.preparation.blocks import fetch, in_this_process, put, task
from recsys.preparation.local_tasks import LocalTasks, value_of
from recsys.preparation.prepare import prepare

WORLD = {"kind": "synthetic", "num_users": 60, "num_items": 30, "bad_rows": 0.02}


def config_of(folder: Path, **data: Any) -> Config:
    return build_config(
        {
            "run": {"dir": str(folder)},
            "data": {
                "source": WORLD,
                "text": {"enabled": False},
                "quarantine": {"max_share": 0.1},
                **data,
            },
            "model": {"granularities": {"evolution": {"enabled": True}}},
        }
    )


def written(folder: Path) -> dict[str, Any]:
    """The bytes of every file of a dataset, the manifest without its times."""
    found: dict[str, Any] = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    manifest = json.loads(found.pop("manifest.json"))
    found["manifest"] = {
        name: value for name, value in manifest.items() if name not in ("timing", "created")
    }
    return found


@pytest.mark.parametrize(
    "data", [{}, {"split": {"kind": "temporal"}}, {"min_item_events": 8, "min_user_events": 3}]
)
def test_threads_write_the_files_of_ray(
    data: dict[str, Any], ray_local: None, tmp_path: Path
) -> None:
    prepare(config_of(tmp_path / "ray", **data), progress=lambda _: None)
    with in_this_process(no_ray, num_threads=3):
        prepare(config_of(tmp_path / "threads", **data), progress=lambda _: None)
    ours, theirs = (written(tmp_path / name / "dataset") for name in ("threads", "ray"))
    assert len(ours) > 10 and ours == theirs


def test_tasks_wait_for_earlier_ones_also_with_one_thread() -> None:
    with in_this_process(no_ray, num_threads=1):
        numbers = task(halves, 2).remote(put(9))
        total = task(added).remote(*numbers, more=numbers[1])
        assert fetch(total) == 4 + 5 + 5 and fetch(numbers) == [4, 5]
        assert [fetch(ref) for ref in task(counted, "streaming").remote(3)] == [0, 1, 2]


def test_error_of_a_task_is_that_of_all_that_need_it() -> None:
    with in_this_process(no_ray, num_threads=2):
        first, second = task(refused, 2).remote()
        for ref in (first, second, task(added).remote(first, 1)):
            with pytest.raises(DataError, match="no such row"):
                fetch(ref)


def test_close_drops_tasks_that_have_not_started() -> None:
    tasks, started = LocalTasks(1), []
    first = tasks.task(started.append, 1).remote(1)
    value_of(first)
    tasks.close()
    with pytest.raises(RuntimeError):
        tasks.task(started.append, 1).remote(2)
    assert started == [1]


@pytest.mark.parametrize(("limit", "sessions"), [(stage._SMALL_BYTES, 0), (0, 1)])
def test_small_data_need_no_ray(
    limit: int, sessions: int, ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    session = stage.ray_session

    def counted_session(*arguments: Any) -> Any:
        asked.append(arguments)
        return session(*arguments)

    monkeypatch.setattr(stage, "ray_session", counted_session)
    monkeypatch.setattr(stage, "_SMALL_BYTES", limit)
    words = ["prepare", "--config", "demo", "--run.dir", str(tmp_path / "run")]
    more = {"text.enabled": "false", "quarantine.max_share": "0.1"}
    more |= {f"source.{name}": str(value) for name, value in WORLD.items()}
    for name, value in more.items():
        words += [f"--data.{name}", value]
    assert main(words) == 0
    assert len(asked) == sessions


def no_ray() -> None:
    raise AssertionError("nothing here needs Ray")


def halves(number: int) -> tuple[int, int]:
    return number // 2, number - number // 2


def added(*numbers: int, more: int = 0) -> int:
    return sum(numbers) + more


def counted(number: int) -> Iterator[int]:
    yield from range(number)


def refused() -> tuple[int, int]:
    raise DataError("no such row")
