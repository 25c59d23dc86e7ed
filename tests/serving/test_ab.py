"""Two versions behind one server: assignment of users, exploration with exact propensities, and the
answer log.
"""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_serving_ways import Served, free_port, get, post, ray_server

from pipelines.following import sides as followed
from recsys.bundle.layout import Bundle
from recsys.config import ServeConfig
from recsys.errors import ConfigError
from recsys.registry.mlflow_client import client
from recsys.serving.admission import Limits
from recsys.serving.answer_log import AnswerLog, read_logs
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.experiment_split import Split
from recsys.serving.exploration import Explorer
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_requests
from recsys.serving.requests import Job, Request
from recsys.serving.service import Incoming, Outcome, Service, service_of
from recsys.serving.stock import StockChange
from tests.handmade import small_model, small_world

LIMITS = Limits(1 << 20)
A = {"uri": "models:/pocket/3", "version": "3"}
B = {"uri": "models:/pocket/4", "version": "4"}
USERS = [f"user {number}" for number in range(20_000)]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    """Two models of one dataset that rank differently."""
    place = tmp_path_factory.mktemp("ab")
    dataset = small_world(place / "dataset")
    for name, fusion in (("a", "gated"), ("b", "weighted")):
        write_bundle(place / name, small_model(dataset, fusion=fusion), dataset, {})
    return read_bundle(place / "a"), read_bundle(place / "b")


def pair(bundles: tuple[Bundle, Bundle], **settings: Any) -> Service:
    service = service_of(
        ServeConfig.model_validate({"ab": {"model": "b", "share": 0.5}, **settings}), LIMITS
    )
    service.adopt(bundles[0], A, "a")
    service.adopt(bundles[1], B, "b")
    return service


def call(
    service: Service, body: Any, path: str = "/recommend", method: str = "POST"
) -> tuple[int, Any, dict[str, str]]:
    async def ask(job: Job) -> Outcome:
        return service.answer([job])[0]

    reply = asyncio.run(service.handle(Incoming(method, path, {}, json.dumps(body).encode()), ask))
    return reply.status, json.loads(reply.body), dict(reply.headers)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("salt", ["ab", "another"])
def test_share_of_users_matches_the_configuration(share: float, salt: str) -> None:
    found = sum(Split(share, salt).side_of(user) == "b" for user in USERS)
    assert abs(found - share * len(USERS)) < 4 * np.sqrt(share * (1 - share) * len(USERS))


def test_every_process_assigns_users_to_the_same_side() -> None:
    sides = "".join(Split(0.3, "salt").side_of(user) for user in USERS[:500])
    words = "from recsys.serving.experiment_split import Split\n"
    words += "print(''.join(Split(0.3, 'salt').side_of(f'user {n}') for n in range(500)))"
    for seed in ("1", "2"):  # Python's hash() of a string depends on it
        found = subprocess.run(
            [sys.executable, "-c", words],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout.strip() == sides


def test_larger_share_moves_users_only_to_b_and_new_salt_reassigns() -> None:
    small, large, other = Split(0.1, "ab"), Split(0.3, "ab"), Split(0.1, "next test")
    mine = {user for user in USERS if small.side_of(user) == "b"}
    assert mine < {user for user in USERS if large.side_of(user) == "b"}
    both = sum(other.side_of(user) == "b" for user in mine) / len(mine)
    assert 0.06 < both < 0.14, "who was drawn in one test is drawn in the next as often as anybody"


def test_users_keep_their_version_in_mixed_calls(bundles: tuple[Bundle, Bundle]) -> None:
    service = pair(bundles)
    rows = [
        {"user_id": f"{'u' if number < 6 else 'stranger '}{number}", "k": 4} for number in range(40)
    ]
    rows.insert(3, {"history": ["i1", "i2"], "k": 4})
    status, answers, headers = call(service, rows)
    assert status == 200 and headers["X-Model-Version"] == "3, 4"
    of = {"3": Recommender(bundles[0]), "4": Recommender(bundles[1])}
    for row, answer in zip(rows, answers, strict=True):
        side = Split(0.5, "ab").side_of(row.get("user_id"))
        assert (answer.pop("side"), answer["version"]) == (side, {"a": "3", "b": "4"}[side])
        [expected] = of[answer.pop("version")].recommend(parse_requests([row]))
        assert answer["item_ids"] == expected.item_ids
        one = call(service, row)
        assert (
            one[1]["item_ids"] == expected.item_ids
            and one[2]["X-Model-Version"] == one[1]["version"]
        )
    lists = [
        [answer.item_ids for answer in one.recommend(parse_requests(rows[:3]))]
        for one in of.values()
    ]
    assert lists[0] != lists[1], "the versions rank differently"
    second = {"share": 0.5, "interleave": False, "model": B}
    assert service.about["ab"] == second and service.about["version"] == "3"


def test_version_a_answers_similar_items_and_requests_without_user(
    bundles: tuple[Bundle, Bundle],
) -> None:
    service = pair(bundles)
    for number in range(20):
        assert call(service, {"history": [f"i{number % 9}"], "k": 3})[1]["version"] == "3"
    assert call(service, {"item_id": "i2", "k": 3}, "/similar")[2]["X-Model-Version"] == "3"


def test_versions_change_independently_and_keep_the_stock(bundles: tuple[Bundle, Bundle]) -> None:
    service = pair(bundles)
    users = {
        side: next(user for user in USERS if Split(0.5, "ab").side_of(user) == side)
        for side in ("a", "b")
    }
    best = {
        side: call(service, {"user_id": user, "k": 1})[1]["item_ids"][0]
        for side, user in users.items()
    }
    service.restock(service.stock.after(StockChange(out=[*set(best.values())])))
    service.adopt(bundles[0], {"uri": "models:/pocket/5", "version": "5"}, "b")
    for side, user in users.items():
        answer = call(service, {"user_id": user, "k": 1})[1]
        assert (
            answer["version"] == {"a": "3", "b": "5"}[side]
            and answer["item_ids"][0] not in best.values()
        )
    service.adopt(bundles[1], {"uri": "models:/pocket/6", "version": "6"}, "a")
    assert [call(service, {"user_id": users[side]})[1]["version"] for side in ("a", "b")] == [
        "6",
        "5",
    ]


def test_error_counts_requests_from_the_beginning_of_the_call(
    bundles: tuple[Bundle, Bundle],
) -> None:
    service = pair(bundles)
    for place in range(8):
        rows: list[Any] = [{"user_id": f"u{number}"} for number in range(8)]
        rows[place]["history"] = [{"item_id": "i1", "event_type": "x"}]
        status, said, _ = call(service, rows)
        assert status == 400 and said["error"].startswith(
            f"request {place}: history[0].event_type"
        ), said


def test_answers_have_no_version_without_a_second_model(bundles: tuple[Bundle, Bundle]) -> None:
    service = service_of(ServeConfig(), LIMITS)
    service.adopt(bundles[0], A)
    answer = call(service, {"user_id": "u0"})[1]
    assert (
        not {"version", "side", "answer_id", "propensities"} & set(answer)
        and "ab" not in service.about
    )


# ------------------------------------------------------------------------------------- interleaving


def test_interleaved_list_takes_the_best_items_of_both_models_in_turn(
    bundles: tuple[Bundle, Bundle],
) -> None:
    service = pair(bundles, ab={"model": "b", "share": 0.5, "interleave": True})
    of = {side: Recommender(bundle) for side, bundle in zip("ab", bundles, strict=True)}
    starts: Counter[str] = Counter()
    for number in range(60):
        row = {"user_id": f"new {number}", "history": ["i1", "i2"], "k": 6, "at": 86_400}
        answer = call(service, row)[1]
        if Split(0.5, "ab").side_of(row["user_id"]) == "a":
            assert answer["side"] == "a" and "teams" not in answer
            continue
        assert (answer["side"], answer["version"]) == ("ab", "3, 4")
        items, teams = answer["item_ids"], answer["teams"]
        assert len(items) == len(set(items)) == len(teams) == 6
        for first in range(0, 6, 2):  # one item of each model in every round
            assert set(teams[first : first + 2]) == {"a", "b"}
        starts[teams[0]] += 1
        for side, recommender in of.items():
            [alone] = recommender.recommend(parse_requests([row]))
            picked = [item for item, team in zip(items, teams, strict=True) if team == side]
            listed: set[str] = set()
            for item in picked:  # the best item that was not in the list yet
                before = set(items[: items.index(item)])
                assert item == next(one for one in alone.item_ids if one not in before)
                score = alone.scores[alone.item_ids.index(item)]
                assert answer["scores"][items.index(item)] == pytest.approx(score, abs=1e-5)
                listed.add(item)
        sums = np.sum([*answer["shares"].values()], axis=0)
        np.testing.assert_allclose(sums, answer["scores"], atol=1e-5)
    assert min(starts["a"], starts["b"]) > 5, "either model may be first"
    rows = [{"user_id": f"new {number}", "history": ["i1"], "k": 2} for number in range(3)]
    assert call(service, rows)[2]["X-Model-Version"] == "3, 4", "each version once"
    assert service.about["ab"]["interleave"] is True


def test_interleaved_pages_fit_together_and_keep_rules_and_limits(
    bundles: tuple[Bundle, Bundle],
) -> None:
    service = pair(bundles, ab={"model": "b", "share": 0.99, "interleave": True})
    row = {"user_id": "ann", "history": ["i1"], "at": 86_400, "exclude": ["i4"]}
    whole = call(service, row | {"k": 6})[1]
    pages = [call(service, row | {"k": 2, "offset": offset})[1] for offset in (0, 2, 4)]
    assert [item for page in pages for item in page["item_ids"]] == whole["item_ids"]
    assert [team for page in pages for team in page["teams"]] == whole["teams"]
    assert "i4" not in whole["item_ids"]
    limited = [
        call(service, row | {"k": 2, "offset": offset, "per_user_limit": 3})[1]["item_ids"]
        for offset in (0, 2, 4)
    ]
    assert limited == [whole["item_ids"][:2], whole["item_ids"][2:3], []]
    explained = call(service, row | {"k": 3, "explain": True})[1]
    assert len(explained["explanations"]) == 3
    diverse = call(service, row | {"k": 4, "diversify": {"strength": 0.5}})[1]
    assert diverse["side"] == "a" and "teams" not in diverse


def test_interleaved_answers_are_logged_with_both_models(
    bundles: tuple[Bundle, Bundle], tmp_path: Path
) -> None:
    ab = {"model": "b", "share": 0.99, "interleave": True}
    service = pair(bundles, ab=ab, log=str(tmp_path), explore={"share": 0.5, "pool": 4})
    answer = call(service, {"user_id": "ann", "history": ["i1"], "k": 4})[1]
    [[one], _] = read_logs([str(tmp_path)])
    assert (one.label, one.second) == (A["uri"], B["uri"])
    assert one.item_ids == answer["item_ids"] and one.teams == answer["teams"]
    assert one.propensities is None, "a merged list is not explored"


# -------------------------------------------------------------------------------------- exploration


def test_item_positions_match_the_propensities(bundles: tuple[Bundle, Bundle]) -> None:
    recommender, explorer = Recommender(bundles[0]), Explorer(0.4, 5, "explore")
    ranked = recommender.recommend(parse_requests([{"history": ["i1"], "k": 7}]))[0].item_ids
    rows = [
        {"user_id": f"new {number}", "history": ["i1"], "k": 7, "at": 86_400}
        for number in range(4000)
    ]
    counts: Counter[tuple[int, str]] = Counter()
    said: dict[tuple[int, str], float] = {}
    for answer in recommender.answer(parse_requests(rows), explorer=explorer):
        assert answer.propensities is not None and sorted(answer.item_ids[:5]) == sorted(ranked[:5])
        assert answer.item_ids[5:] == ranked[5:] and answer.propensities[5:] == [1, 1]
        for place, (item, chance) in enumerate(
            zip(answer.item_ids, answer.propensities, strict=True)
        ):
            counts[place, item] += 1
            assert said.setdefault((place, item), chance) == chance
    for place in range(5):
        chances = [said[place, item] for item in ranked[:5]]
        assert sum(chances) == pytest.approx(1), "one of the pool stands at each place"
        assert chances[place] == pytest.approx(0.6 + 0.4 / 5)
        for item, chance in zip(ranked[:5], chances, strict=True):
            assert abs(counts[place, item] - chance * 4000) < 4.5 * np.sqrt(
                chance * (1 - chance) * 4000
            )


def test_pages_of_one_day_fit_together_and_days_differ(bundles: tuple[Bundle, Bundle]) -> None:
    recommender, explorer = Recommender(bundles[0]), Explorer(1.0, 6, "explore")

    def page(k: int, offset: int, day: int, **limit: int) -> list[str]:
        row = {
            "user_id": "new",
            "history": ["i1"],
            "k": k,
            "offset": offset,
            "at": 86_400 * day + 7,
            **limit,
        }
        return list(recommender.answer(parse_requests([row]), explorer=explorer)[0].item_ids)

    whole = [page(9, 0, day) for day in range(1, 9)]
    assert page(4, 0, 1) + page(3, 4, 1) + page(2, 7, 1) == whole[0]
    assert page(4, 4, 1, per_user_limit=6) == whole[0][4:6]
    assert len({tuple(one) for one in whole}) > 4


def test_exploration_is_independent_of_the_side() -> None:
    explorer = Explorer(0.3, 4, "ab")  # the salt of the split
    items, split = np.arange(4), Split(0.5, "ab")
    moved: Counter[str] = Counter()
    for user in USERS[:4000]:
        request = Request(user_id=user, k=4, at="1970-01-02")  # type: ignore[arg-type]
        shown, _ = explorer.page(request, items, lambda places: -places.astype(float))
        moved[split.side_of(user)] += shown.tolist() != items.tolist()
    assert abs(moved["a"] - moved["b"]) < 4 * np.sqrt(moved.total()), moved


def test_lists_without_user_or_with_diversity_are_not_explored(
    bundles: tuple[Bundle, Bundle],
) -> None:
    recommender, explorer = Recommender(bundles[0]), Explorer(1.0, 6, "explore")
    rows = [
        {"history": ["i1"]},
        {"user_id": "u1", "diversify": {"strength": 0.3}},
        {"user_id": "u1"},
    ]
    drawn = recommender.answer(parse_requests(rows), explorer=explorer)
    plain = recommender.recommend(parse_requests(rows))
    assert drawn[:2] == plain[:2] and drawn[2].propensities is not None  # type: ignore[union-attr]


def test_explored_list_keeps_rules_and_exact_shares(bundles: tuple[Bundle, Bundle]) -> None:
    recommender, explorer = Recommender(bundles[0]), Explorer(1.0, 20, "explore")
    row = {
        "user_id": "u1",
        "k": 9,
        "candidates": ["i1", "i3", "i5", "i7", "i9"],
        "exclude": ["i5"],
        "boost": [],
    }
    row["boost"] = [{"factor": 4, "items": ["i9"]}]
    [answer] = recommender.answer(parse_requests([row]), explorer=explorer)
    assert set(answer.item_ids) <= {"i1", "i3", "i7", "i9"} and len(answer.item_ids) >= 3
    assert answer.propensities == [pytest.approx(1 / len(answer.item_ids))] * len(answer.item_ids)  # type: ignore[union-attr]
    sums = np.sum(list(answer.shares.values()), axis=0)  # type: ignore[union-attr]
    np.testing.assert_allclose(sums, answer.scores)


# ------------------------------------------------------------------------------------------ the log


def test_log_equals_the_answers(bundles: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    service = pair(bundles, log=str(tmp_path / "log"), explore={"share": 0.5, "pool": 4})
    rows = [
        {"user_id": f"u{n}", "k": 3, "history": [{"item_id": "i1", "event_type": "buy"}]}
        for n in range(9)
    ]
    answers = call(service, rows)[1]
    call(service, {"item_id": "i2"}, "/similar")
    call(service, [{"user_id": "u0"}, {"user_id": 7}])
    [path] = (tmp_path / "log").iterdir()
    assert path.name.startswith("answers-") and path.stat().st_mode & 0o777 == 0o600
    logged, num_cut = read_logs([str(tmp_path / "log")])
    assert num_cut == 0 and len(logged) == 9, "neither similar items nor refused calls"
    by_id = {one.answer_id: one for one in logged}
    for row, answer in zip(rows, answers, strict=True):
        one = by_id[answer["answer_id"]]
        assert (one.user_id, one.item_ids) == (row["user_id"], answer["item_ids"])
        assert one.propensities == answer["propensities"]
        assert one.label == {"a": A, "b": B}[answer["side"]]["uri"]
        assert one.request == parse_requests([row])[0]


def test_call_during_a_version_change_is_logged_once(
    bundles: tuple[Bundle, Bundle], tmp_path: Path
) -> None:
    service = pair(bundles, log=str(tmp_path), max_scores=10**12)
    service.limits = Limits(1 << 20, 10_000, max_answers=10**7, max_scores=10**12)
    asked = 0

    async def ask(job: Job) -> Outcome:
        nonlocal asked
        asked += 1
        if asked == 2:
            service.adopt(bundles[0], {"uri": "models:/pocket/9", "version": "9"}, "b")
        return service.answer([job])[0]

    rows = [{"user_id": f"u{number}", "k": 3} for number in range(400)]
    reply = asyncio.run(
        service.handle(Incoming("POST", "/recommend", {}, json.dumps(rows).encode()), ask, ask)
    )
    assert reply.status == 200 and dict(reply.headers)["X-Model-Version"] == "3, 9" and asked > 3
    assert len(read_logs([str(tmp_path)])[0]) == 400


def test_failed_log_write_fails_no_call_and_is_counted(
    bundles: tuple[Bundle, Bundle], tmp_path: Path
) -> None:
    service = pair(bundles, log=str(tmp_path / "log"))
    (tmp_path / "log").rmdir()
    (tmp_path / "log").touch()  # a file in place of the folder: writing fails
    assert call(service, {"user_id": "u0"})[0] == 200
    assert (
        "recsys_unlogged_answers_total 1"
        in service.metrics([service.counts.snapshot()], 1).body.decode()
    )


def test_log_requires_local_folder_and_exploration_requires_log(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for settings, message in (
        ({"log": "s3://bucket/log"}, "must be a local folder"),
        ({"log": str(tmp_path / "file")}, "is not writable"),
        ({"explore": {"share": 0.1}}, r"serve\.explore\.share is set, but serve\.log is empty"),
        ({"ab": {"interleave": True}}, r"serve\.ab\.interleave is true, but serve\.ab\.model"),
    ):
        with pytest.raises(ConfigError, match=message):
            followed.check_log(ServeConfig.model_validate(settings))
    followed.check_log(ServeConfig(log=str(tmp_path / "new/folder")))
    assert (tmp_path / "new/folder").is_dir() and not list((tmp_path / "new/folder").iterdir())
    assert AnswerLog(str(tmp_path / "new/folder")).write([{"a": 1}])
    assert not AnswerLog(str(tmp_path / "other")).write([{"a": math.nan}]), (
        "no call fails by its log"
    )


@pytest.mark.slow
def test_two_replicas_keep_each_user_on_their_version_while_both_aliases_move(
    tmp_path: Path,
) -> None:
    served = Served(tmp_path)  # version 1
    registry, port = client(served.uri), free_port()
    registry.set_registered_model_alias("pocket", "challenger", "1")
    served.add(1)  # version 2, the champion
    url, log = f"http://127.0.0.1:{port}", tmp_path / f"serve-{port}.log"
    more = [
        "--serve.replicas",
        "2",
        "--serve.poll_seconds",
        "0.5",
        "--serve.log",
        str(tmp_path / "answers"),
    ]
    more += [
        "--serve.ab.model",
        "models:/pocket@challenger",
        "--serve.ab.share",
        "0.4",
        "--serve.explore.share",
        "0.5",
    ]
    users = [f"{'u' if number < 6 else 'stranger '}{number}" for number in range(40)]

    def versions() -> dict[str, set[str]]:
        """The versions that answered the users of each side, in single calls and then in one
        call.
        """
        found: dict[str, set[str]] = {"a": set(), "b": set()}
        rows = [{"user_id": user, "history": ["i1"], "k": 3} for user in users]
        answers = [post(f"{url}/recommend", row) for row in rows] + post(f"{url}/recommend", rows)
        for user, answer in zip(users * 2, answers, strict=True):
            assert (
                answer["side"] == Split(0.4, "ab").side_of(user)
                and len(answer["propensities"]) == 3
            )
            found[answer["side"]].add(answer["version"])
        return found

    def wait_for(text: str) -> None:
        for _ in range(1000):
            if text in log.read_text():
                return
            time.sleep(0.2)
        raise AssertionError(log.read_text())

    with ray_server(served, tmp_path, port, *more):
        assert (
            "models:/pocket/1 answers 0.4 of the users, models:/pocket/2 the others"
            in log.read_text()
        )
        assert versions() == {"a": {"2"}, "b": {"1"}}
        served.add(2)  # version 3, the champion
        wait_for("models:/pocket/3 now answers on 2 replica(s)")
        assert versions() == {"a": {"3"}, "b": {"1"}}
        registry.set_registered_model_alias("pocket", "challenger", "2")
        wait_for("models:/pocket/2 now answers on 2 replica(s)")
        assert versions() == {"a": {"3"}, "b": {"2"}}
        assert get(f"{url}/model")["ab"]["model"]["version"] == "2"
    logged, _ = read_logs([str(tmp_path / "answers")])
    assert len(logged) == 3 * 80 and len(list((tmp_path / "answers").iterdir())) == 2, (
        "a file of each replica"
    )
    assert {one.label for one in logged} == {f"models:/pocket/{number}" for number in (1, 2, 3)}
