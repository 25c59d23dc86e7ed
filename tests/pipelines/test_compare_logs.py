"""`recsys compare --logs`: outcomes of versions and off-policy estimates from an answer log, and
refusals.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.cli import main
from recsys.config import ServeConfig
from recsys.serving.admission import Limits
from recsys.serving.answer_log import read_logs
from recsys.serving.attribution import Events, attributed
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_requests
from recsys.serving.requests import Job
from recsys.serving.service import Incoming, Outcome, service_of
from tests.handmade import small_model, small_world

Captured = pytest.CaptureFixture[str]
NUM_USERS, K = 3000, 4
# probability of a click on a shown item
WORTH = {f"i{item}": 0.9 if item % 2 else 0.1 for item in range(12)}


@dataclass(frozen=True)
class World:
    """The answer log of two versions, the clicks, and the true value of each version without
    exploration.
    """

    folder: Path
    truth: dict[str, float]

    @property
    def logs(self) -> str:
        return str(self.folder / "log")

    @property
    def clicks(self) -> str:
        return str(self.folder / "clicks.jsonl")

    def compare(self, *words: str, logs: str = "", clicks: str = "") -> int:
        given = ["compare", "--logs", logs or self.logs, "--feedback", clicks or self.clicks]
        return main([*given, "--evaluate.bootstrap", "300", *words])


def row_of(user: int) -> dict[str, Any]:
    return {"user_id": f"visitor {user}", "history": [f"i{user % 9}", f"i{(user * 5) % 9}"], "k": K}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("logs")
    dataset = small_world(folder / "dataset")
    truth = {}
    rows = [row_of(user) for user in range(NUM_USERS)]
    for name, fusion in (("a", "gated"), ("b", "weighted")):
        write_bundle(folder / name, small_model(dataset, fusion=fusion), dataset, {})
        answers = Recommender(read_bundle(folder / name)).recommend(parse_requests(rows))
        truth[name] = float(
            np.mean([sum(WORTH[item] for item in answer.item_ids) for answer in answers])
        )
    settings: dict[str, Any] = {
        "ab": {"model": "b", "share": 0.3},
        "explore": {"share": 0.5, "pool": 12},
    }
    settings["log"] = str(folder / "log")
    service = service_of(
        ServeConfig.model_validate(settings), Limits(1 << 20, 10_000, max_answers=10**7)
    )
    for side in ("a", "b"):
        service.adopt(
            read_bundle(folder / side), {"uri": f"models:/pocket/{side}", "version": side}, side
        )  # type: ignore[arg-type]

    async def ask(job: Job) -> Outcome:
        return service.answer([job])[0]

    for start in range(0, NUM_USERS, 500):
        body = json.dumps(rows[start : start + 500]).encode()
        assert (
            asyncio.run(service.handle(Incoming("POST", "/recommend", {}, body), ask)).status == 200
        )
    random = np.random.default_rng(0)
    with (folder / "clicks.jsonl").open("w") as file:
        for one in read_logs([str(folder / "log")])[0]:
            for item in one.item_ids:
                if random.random() < WORTH[item]:
                    when = datetime.fromtimestamp(one.time, UTC) + timedelta(minutes=3)
                    file.write(json.dumps(event(one.user_id, item, when)) + "\n")
    return World(folder, truth)


def event(user: str | None, item: str, when: datetime, **more: Any) -> dict[str, Any]:
    return {
        "user_id": user,
        "item_id": item,
        "event_type": "click",
        "timestamp": when.isoformat(),
        **more,
    }


def test_estimate_intervals_contain_the_planted_value(world: World, capsys: Captured) -> None:
    for name in ("a", "b"):
        out = world.folder / f"{name}.json"
        assert (
            world.compare("--compare.target", str(world.folder / name), "--compare.out", str(out))
            == 0
        )
        printed, record = capsys.readouterr().out, json.loads(out.read_text())
        target = record["target"]
        for estimator in ("ips", "snips", "dr"):
            low, high = target[estimator]["low"], target[estimator]["high"]
            slack = high - low  # three times the interval: right for all worlds but one in millions
            assert low - slack < world.truth[name] < high + slack, (name, estimator)
        assert target["answers"] == record["answers"] == NUM_USERS == target["users"]
        assert 1 <= target["largest_weight"] <= 12 / 0.5
        assert 100 < target["effective_sample_size"] < NUM_USERS * K
        assert "effective sample size" in printed and "largest weight" in printed
    assert abs(world.truth["a"] - world.truth["b"]) > 0.02, "the models are worth different amounts"


def test_versions_are_compared_by_mean_outcome_over_users(world: World, capsys: Captured) -> None:
    assert world.compare() == 0
    record = json.loads((world.folder / "log/compare.json").read_text())
    assert "target" not in record and record["notes"] == []
    first, second = record["versions"].items()
    assert (first[0], second[0]) == ("models:/pocket/a", "models:/pocket/b"), "most answers first"
    assert (
        first[1]["answers"] + second[1]["answers"] == NUM_USERS and 800 < second[1]["users"] < 1000
    )
    clicks = len(Path(world.clicks).read_text().splitlines())
    total = sum(
        one["answers"] * one["reward_per_answer"]["value"] for one in record["versions"].values()
    )
    assert total == pytest.approx(clicks)
    found = second[1]["differences"]["reward_per_answer"]
    assert found["low"] < found["difference"] < found["high"]
    assert "models:/pocket/b minus models:/pocket/a, reward per answer: " in capsys.readouterr().out


def test_interleaved_lists_show_the_preferred_model(
    world: World, tmp_path: Path, capsys: Captured
) -> None:
    """Side b ranks by the worth of items, so users click its items more often."""
    random, lines, clicks = np.random.default_rng(1), [], []
    for number in range(300):
        items, teams = ["i1", "i2", "i3", "i4"], ["b", "a", "b", "a"]
        line = {
            "answer_id": f"m{number}",
            "time": "2026-01-01T00:00:00+00:00",
            "user_id": f"visitor {number % 90}",
            "model": "models:/pocket/1",
            "version": "1",
            "second": {"model": "models:/pocket/2", "version": "2"},
            "side": "ab",
            "item_ids": items,
            "teams": teams,
            "request": {"user_id": f"visitor {number % 90}"},
        }
        lines.append(json.dumps(line))
        for item in items:
            if random.random() < 0.3 * WORTH[item]:
                click = {"user_id": line["user_id"], "item_id": item, "event_type": "click"}
                clicks.append(json.dumps(click | {"answer_id": f"m{number}"}))
    log, feedback = tmp_path / "answers-1.jsonl", tmp_path / "clicks.jsonl"
    log.write_text("\n".join(lines) + "\n")
    feedback.write_text("\n".join(clicks) + "\n")
    assert world.compare(logs=str(log), clicks=str(feedback)) == 0
    record = json.loads((tmp_path / "compare.json").read_text())
    [found] = record["interleaved"]
    assert (found["a"], found["b"], found["answers"]) == (
        "models:/pocket/1",
        "models:/pocket/2",
        300,
    )
    assert found["won_b"] > 4 * found["won_a"] > 0 and found["users"] == 90
    assert found["preference"]["low"] > 0.3 and record["versions"] == {}
    assert "models:/pocket/2 is significantly better" in capsys.readouterr().out
    log.write_text(log.read_text().replace('["b", "a", "b", "a"]', '["b", "x", "b", "a"]'))
    assert world.compare(logs=str(log), clicks=str(feedback)) == 2
    assert "teams must have 'a' or 'b' for every item" in capsys.readouterr().err


def test_dry_run_reads_and_writes_nothing(world: World, capsys: Captured) -> None:
    out = world.folder / "dry.json"
    assert world.compare("--compare.out", str(out), "--dry-run") == 0
    printed = capsys.readouterr().out
    assert (
        f"writes  {out}" in printed
        and f"reads   {world.logs}" in printed
        and "Nothing was done" in printed
    )
    assert not out.exists()
    assert world.compare("--dry-run", logs=str(world.folder / "nowhere")) == 2


def changed(world: World, folder: Path, change: Callable[[dict[str, Any]], Any]) -> str:
    """A copy of the log with every line changed."""
    lines = [
        json.loads(line)
        for path in Path(world.logs).glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    [change(line) for line in lines]
    (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder / "answers.jsonl")


def refused(code: int, capsys: Captured, *parts: str) -> None:
    printed = capsys.readouterr().err
    assert code == 2 and printed.count("recsys: ") == 1 and "Traceback" not in printed, printed
    assert all(part in printed for part in parts), printed


def test_log_without_propensities_is_refused_only_with_a_target(
    world: World, tmp_path: Path, capsys: Captured
) -> None:
    logs = changed(world, tmp_path, lambda line: line.pop("propensities"))
    code = world.compare("--compare.target", str(world.folder / "b"), logs=logs)
    refused(code, capsys, logs, "none of 3,000 answers has propensities", "serve.explore.share")
    assert not (tmp_path / "compare.json").exists()
    assert world.compare(logs=logs) == 0 and (tmp_path / "compare.json").exists()


def test_answers_without_propensities_are_left_out_of_the_estimates(
    world: World, tmp_path: Path, capsys: Captured
) -> None:
    def strip(line: dict[str, Any]) -> None:
        if line["user_id"].endswith("7"):
            del line["propensities"]
        if line["user_id"].endswith("8"):
            line["request"].pop("user_id")

    logs = changed(world, tmp_path, strip)
    assert world.compare("--compare.target", str(world.folder / "b"), logs=logs) == 0
    record = json.loads((tmp_path / "compare.json").read_text())
    assert record["answers"] == 2700 and record["target"]["answers"] == 2400
    assert "300 answers without user_id are left out" in record["notes"]
    assert "300 answers without propensities are left out of the estimates" in record["notes"]


def test_target_trained_after_the_log_is_refused(
    world: World, tmp_path: Path, capsys: Captured
) -> None:
    newest = Recommender(read_bundle(world.folder / "b")).newest
    assert newest > 0

    def earlier(line: dict[str, Any]) -> None:
        line["time"] = datetime.fromtimestamp(newest - 60, UTC).isoformat()

    logs = changed(world, tmp_path, earlier)
    clicks = tmp_path / "clicks.jsonl"
    events = [json.loads(line) for line in Path(world.clicks).read_text().splitlines()]
    when = datetime.fromtimestamp(newest, UTC).isoformat()
    clicks.write_text("".join(json.dumps({**one, "timestamp": when}) + "\n" for one in events))
    code = world.compare("--compare.target", str(world.folder / "b"), logs=logs, clicks=str(clicks))
    refused(code, capsys, "compare.target", "it has seen their outcomes")


def test_bad_lines_name_file_and_line_and_incomplete_last_line_is_skipped(
    world: World, tmp_path: Path, capsys: Captured
) -> None:
    [path] = Path(world.logs).glob("*.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    log = tmp_path / "answers.jsonl"
    log.write_text("".join(lines[:2000]) + lines[2000][:50])
    assert world.compare(logs=str(log)) == 0
    record = json.loads((tmp_path / "compare.json").read_text())
    assert record["answers"] == 2000 and any("incomplete lines" in note for note in record["notes"])
    good = json.loads(lines[1])
    for bad in (
        lines[1][:50],
        "[]",
        "7",
        json.dumps({**good, "propensities": [0.5]}),
        json.dumps({**good, "propensities": [0.0] * K}),
        json.dumps({**good, "item_ids": [1, 2, 3, 4]}),
        json.dumps({**good, "time": "yesterday"}),
        json.dumps({**good, "request": {"user": "u0"}}),
    ):
        log.write_text(lines[0] + bad.rstrip("\n") + "\n" + lines[2])
        refused(world.compare(logs=str(log)), capsys, f"{log}, line 2")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--logs", "LOG"], ["compare.feedback", "got none"]),
        (["--logs"], ["--logs needs one or more files"]),
        (
            ["--logs", "nowhere/*.jsonl", "--feedback", "CLICKS"],
            ["compare.logs", "nowhere/*.jsonl"],
        ),
        (["--logs", "LOG", "--feedback", "nowhere.csv"], ["nowhere.csv"]),
        (["RUN", "RUN", "--logs", "LOG"], ["run folders and --logs"]),
        (["RUN", "RUN", "--feedback", "CLICKS"], ["--feedback", "need --logs"]),
        (
            ["--logs", "LOG", "--feedback", "CLICKS", "--train.lr", "1"],
            ["does not read --train.lr", "--tracking.uri"],
        ),
        (
            ["--logs", "LOG", "--feedback", "CLICKS", "--compare.rewards", "{buy: 1}"],
            ["no reward", "'click'", "buy"],
        ),
        (["--logs", "LOG", "--feedback", "CLICKS", "--compare.target", "nowhere"], ["nowhere"]),
        (
            ["--logs", "LOG", "--feedback", "CLICKS", "--compare.window_hours", "0.01"],
            ["none of", "0.01 hours"],
        ),
        (
            ["--logs", "LOG", "--feedback", "CLICKS", "--compare.targets", "x"],
            ["targets", "unknown"],
        ),
    ],
)
def test_wrong_inputs_give_one_message(
    words: list[str], parts: list[str], world: World, capsys: Captured
) -> None:
    places = {"LOG": world.logs, "CLICKS": world.clicks}
    refused(main(["compare", *(places.get(word, word) for word in words)]), capsys, *parts)


def test_event_belongs_to_the_newest_earlier_answer_with_its_item(world: World) -> None:
    logged = sorted(read_logs([world.logs])[0], key=lambda one: one.time)[:3]
    times = (0.0, 100.0, 200.0)
    items = (["x", "y"], ["y", "z"], ["x"])
    logged = [
        replace(one, user_id="u", time=time, item_ids=names)
        for one, time, names in zip(logged, times, items, strict=True)
    ]
    cases: list[tuple[str, str, float | None, str | None, tuple[int, int] | None]] = [
        ("u", "y", 50.0, None, (0, 1)),
        ("u", "y", 150.0, None, (1, 0)),
        ("u", "x", 199.5, None, (2, 0)),  # clocks differ by less than a second
        ("u", "x", 198.0, None, (0, 0)),
        ("u", "x", 501.0, None, None),  # after the window of 300 s
        ("u", "w", 150.0, None, None),
        ("v", "y", 150.0, None, None),
        ("u", "y", None, None, None),
        ("u", "y", None, logged[0].answer_id, (0, 1)),
        ("u", "y", 150.0, logged[0].answer_id, (0, 1)),
        ("u", "y", 150.0, "another", None),
        ("u", "y", 150.0, logged[2].answer_id, None),
    ]
    for user, item, seconds, answer_id, expected in cases:
        events = Events([user], [item], np.array([2.0]), [seconds], [answer_id])
        rewards, num_lost = attributed(logged, events, 300.0)
        found = {
            (number, int(place)): 2.0
            for number, one in enumerate(rewards)
            for place in np.flatnonzero(one)
        }
        assert (found, num_lost) == (({expected: 2.0}, 0) if expected else ({}, 1)), (
            user,
            item,
            seconds,
            answer_id,
        )
