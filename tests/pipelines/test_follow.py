"""`recsys update --update.follow`: files that arrive while a training goes on are prepared at once
and trained on next.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest

from pipelines.cli import main
from pipelines.updating import follow
from recsys.data.dataset import PreparedDataset
from recsys.errors import DataError
from recsys.serving.bundles import read_bundle
from tests.pipelines.test_update import events, world  # noqa: F401  # the champion of Monday
from tests.training_here import training_here

Captured = pytest.CaptureFixture[str]
_WAIT = 120.0  # seconds for an append on a busy machine


def day(path: Path, first: int, users: range, *items: int) -> None:
    """One event a user and day from this day on; complete at once."""
    rows = [
        (f"u{u:02}", f"i{(u + item) % 12:02}", first + later, "view")
        for later, item in enumerate(items)
        for u in users
    ]
    events(path.with_suffix(".part"), rows)
    path.with_suffix(".part").rename(path)


def arguments(champion: Path, run: Path, *words: str) -> list[str]:
    return [
        *("update", "--config", str(champion / "c.yaml"), "--run.dir", str(run)),
        *("--update.model", str(champion / "monday/bundle"), "--update.follow", "0.2s"),
        *("--tracking.enabled", "false", "--update.epochs", "1", *words),
    ]


def rounds(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]


def test_file_that_arrives_in_a_training_is_prepared_meanwhile_and_trained_on_next(
    world: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
) -> None:
    folder, run = tmp_path / "events", tmp_path / "live"
    folder.mkdir()
    day(folder / "tuesday.csv", 20, range(12), 8)
    train, arrived = follow.update_all, run / "arrived"

    def meanwhile(config: Any, inside: Any, **how: Any) -> Any:
        """Two more files arrive while the first round trains; its end waits for them."""
        if inside.root.name == "round-0001":
            (folder / "broken.csv").write_text("user_id;what\n1;2\n", encoding="utf-8")
            day(folder / "wednesday.csv", 21, range(24), 9)
            until = time.monotonic() + _WAIT
            while not (arrived / "000002/manifest.json").is_file():
                assert time.monotonic() < until, "nothing was prepared during the training"
                time.sleep(0.1)
        return train(config, inside, **how)

    monkeypatch.setattr(follow, "update_all", meanwhile)
    words = ("--events", str(folder / "*.csv"), "--update.idle", "3s")
    with training_here() as trained:
        assert main(arguments(world, run, *words)) == 0
    assert [Path(name).name for name in trained] == ["round-0001", "round-0002"]
    first, second = rounds(run)
    assert (first["events"], second["events"]) == (24 * 6 + 12, 24 * 6 + 12 + 24)
    assert first["files"] == second["files"] == 1 and first["seconds_after_first_file"] > 0
    for line in (first, second):
        made_of = read_bundle(Path(line["model"]) / "bundle").info.dataset
        assert made_of["root"] == line["dataset"] == PreparedDataset(line["dataset"]).root
    said = capsys.readouterr().out
    assert said.count("is skipped until it, or another table, changes") == 1
    assert "broken.csv" in said


def test_round_without_validation_users_waits_for_the_next_file(
    world: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
) -> None:
    folder, run = tmp_path / "events", tmp_path / "live"
    folder.mkdir()
    day(folder / "tuesday.csv", 20, range(24), 0)  # repeats alone: no target counts
    train = follow.update_all

    def and_then(config: Any, inside: Any, **how: Any) -> Any:
        try:
            return train(config, inside, **how)
        except DataError:
            day(folder / "wednesday.csv", 21, range(24), 9, 10)
            raise

    monkeypatch.setattr(follow, "update_all", and_then)
    words = ("--events", str(folder), "--update.idle", "3s")
    with training_here():
        assert main(arguments(world, run, *words)) == 0
    (line,) = rounds(run)
    assert (line["files"], line["events"]) == (2, 24 * 6 + 24 + 48)
    assert "no update yet, waiting for the next file: the test split has" in capsys.readouterr().out


def test_next_command_continues_with_resume_alone(
    world: Path,  # noqa: F811
    tmp_path: Path,
    capsys: Captured,
) -> None:
    folder, run = tmp_path / "events", tmp_path / "live"
    folder.mkdir()
    words = ("--events", str(folder), "--update.idle", "2s")
    day(folder / "tuesday.csv", 20, range(12), 8)
    with training_here():
        assert main(arguments(world, run, *words)) == 0
        day(folder / "wednesday.csv", 21, range(24), 9)
        capsys.readouterr()
        assert main(arguments(world, run, *words)) == 2
        assert "continue them with --resume" in capsys.readouterr().err
        assert main(arguments(world, run, *words, "--resume")) == 0
    first, second = rounds(run)
    assert second["events"] == first["events"] + 24
    assert f"updating {first['model']}" in capsys.readouterr().out


def test_round_killed_after_registration_and_after_promotion_is_completed_by_resume(
    world: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, run, store = tmp_path / "events", tmp_path / "live", f"sqlite:///{world}/mlflow.db"
    folder.mkdir()
    day(folder / "tuesday.csv", 20, range(12), 8)
    words = ["--events", str(folder), "--update.idle", "2s", "--update.promote", "true"]
    words += ["--update.model", "models:/pocket@champion", "--promote.force", "test"]
    words += ["--tracking.enabled", "true", "--tracking.uri", store, "--resume"]
    with training_here() as trained:
        for last in ("update_all", "promote"):
            step = getattr(follow, last)

            def killed(*given: Any, step: Any = step, **how: Any) -> None:
                step(*given, **how)
                raise KeyboardInterrupt

            with monkeypatch.context() as patch:
                patch.setattr(follow, last, killed)
                assert main(arguments(world, run, *words)) == 130
            assert not (run / "rounds.jsonl").exists()
        assert main(arguments(world, run, *words)) == 0
    assert [Path(name).name for name in trained] == ["round-0001"]
    (line,) = rounds(run)
    assert (line["model"], line["files"], line["events"]) == ("models:/pocket/2", 1, 24 * 6 + 12)
    assert line["seconds_after_first_file"] > 0
    client = mlflow.MlflowClient(store)
    versions = {int(one.version): one.tags for one in client.search_model_versions()}
    assert sorted(versions) == [1, 2] and versions[2]["parent"] == "models:/pocket/1"
    assert int(client.get_model_version_by_alias("pocket", "champion").version) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--events is missing"),
        (("--events", "e/*.csv", "--update.only", "strata"), "update.only all"),
        (("--events", "e/*.csv", "--update.follow", "often"), "is not a duration"),
        (("--events", "e/*.csv", "--update.follow", "0s"), "a time above zero"),
        (("--events", "e/*.csv", "--run.dir", "s3://bucket/live"), "expected a local folder"),
    ],
)
def test_impossible_follow_is_refused(
    world: Path,  # noqa: F811
    tmp_path: Path,
    capsys: Captured,
    words: tuple[str, ...],
    message: str,
) -> None:
    assert main(arguments(world, tmp_path / "live", *words)) == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown


def test_keys_of_follow_are_refused_without_it(
    world: Path,  # noqa: F811
    tmp_path: Path,
    capsys: Captured,
) -> None:
    words = arguments(world, tmp_path / "live", "--update.idle", "1h")
    at = words.index("--update.follow")
    assert main(words[:at] + words[at + 2 :]) == 2
    assert "update.idle and update.promote belong to update.follow" in capsys.readouterr().err
