"""Replies to every kind of call in one process: body formats, refusals, batches, and changes of the
model.
"""

from __future__ import annotations

import asyncio
import gc
import json
import pickle
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recsys.bundle.layout import Bundle
from recsys.config import ServeConfig
from recsys.errors import ConfigError, RequestError
from recsys.registry.followed_model import FollowedModel
from recsys.serving.access import token_sha256, tokens_of
from recsys.serving.admission import Limits
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.calls import CallError
from recsys.serving.large_calls import Slices, read_ahead
from recsys.serving.prometheus import Counts, exposition
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_any, parse_requests
from recsys.serving.requests import Job
from recsys.serving.service import Answered, Incoming, Outcome, Service, health
from recsys.serving.stock import Stock, StockChange, read_stock, write_stock
from tests.handmade import small_model, small_world

ABOUT = {"uri": "models:/pocket/3", "version": "3", "created": "2026-01-01"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = tmp_path_factory.mktemp("service")
    dataset = small_world(world / "dataset")
    write_bundle(world / "bundle", small_model(dataset), dataset, {})
    return world / "bundle"


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return read_bundle(folder)


@pytest.fixture
def service(bundle: Bundle) -> Service:
    made = Service(Limits(max_bytes=2000, max_requests=3, max_answers=1500))
    made.adopt(bundle, ABOUT)
    return made


def call(
    service: Service, path: str, body: Any = b"", method: str = "POST", **headers: str
) -> tuple[int, Any]:
    """The status and content of the reply."""

    async def ask(job: Job) -> Outcome:
        return service.answer([job])[0]

    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = asyncio.run(service.handle(Incoming(method, path, headers, raw), ask))
    return reply.status, json.loads(reply.body)


def test_all_body_formats_give_the_same_answers(service: Service, bundle: Bundle) -> None:
    rows = [{"user_id": "u0", "k": 2}, {"history": ["i1", "x"], "k": 3}]
    expected = [answer.to_dict() for answer in Recommender(bundle).recommend(parse_requests(rows))]
    assert call(service, "/recommend", rows) == (200, expected)
    single = Recommender(bundle).recommend(parse_requests(rows[:1]))[0].to_dict()
    assert call(service, "/recommend", rows[0]) == (200, single)
    assert call(service, "/recommend", []) == (200, [])
    split = {
        "columns": ["user_id", "history", "k"],
        # as a data frame with empty cells is written
        "data": [["u0", None, 2.0], [None, ["i1", "x"], 3]],
    }
    columns = {"user_id": ["u0", None], "history": [None, ["i1", "x"]], "k": [2, 3]}
    for form in (
        {"dataframe_records": rows},
        {"instances": rows},
        {"inputs": rows},
        {"inputs": columns},
        {"dataframe_split": split},
    ):
        assert call(service, "/invocations", form) == (200, {"predictions": expected})
    status, found = call(service, "/invocations", {"inputs": {"user_id": "u0"}, "params": {"k": 2}})
    assert status == 200 and found["predictions"] == [single]


def test_similar_items_on_both_paths(service: Service, bundle: Bundle) -> None:
    row = {"item_id": "i2", "k": 3, "exclude": ["i1"]}
    [answer] = Recommender(bundle).answer(parse_any([row]))
    assert call(service, "/similar", row) == (200, answer.to_dict())
    assert call(service, "/similar", [row, row]) == (200, [answer.to_dict()] * 2)
    both = {"inputs": [row, {"user_id": "u0", "k": 2}], "params": {"k": 9, "exclude_seen": True}}
    status, found = call(service, "/invocations", both)
    assert (
        status == 200
        and found["predictions"][0] == answer.to_dict()
        and len(found["predictions"][1]["item_ids"]) == 2
    )
    assert 'source="similar"' in exposition([service.counts.snapshot()], {}, 1)


def test_stock_changes_only_with_its_token(service: Service, bundle: Bundle) -> None:
    before = call(service, "/recommend", {"user_id": "nobody", "k": 5})[1]["item_ids"]
    change = {"out": [before[0], "unheard of"]}
    status, shown = call(service, "/stock", change)
    assert status == 403 and "serve.stock_token_env" in shown["error"], (
        "closed unless a token is set"
    )
    keys = {
        "token_sha256": token_sha256("a token of callers"),
        "stock_sha256": token_sha256("the warehouse's token"),
    }
    service.limits = replace(service.limits, **keys)
    callers, warehouse = (
        {"authorization": f"Bearer {token}"}
        for token in ("a token of callers", "the warehouse's token")
    )
    assert call(service, "/stock", change, **callers)[0] == 401
    status, shown = call(service, "/stock", change, **warehouse)
    assert (
        status == 200
        and {"out": 2, "revision": 1, "unknown": 1, "everywhere": True}.items() <= shown.items()
    )

    def popular() -> list[str]:
        return list(
            call(service, "/recommend", {"user_id": "nobody", "k": 4}, **callers)[1]["item_ids"]
        )

    assert popular() == before[1:5]
    assert call(service, "/model", method="GET", **callers)[1]["stock"]["out"] == 2
    service.adopt(bundle, ABOUT)
    assert popular() == before[1:5], "the next model keeps to it"
    assert (
        call(service, "/stock", {"add": [before[1]], "remove": [before[0]]}, **warehouse)[1][
            "revision"
        ]
        == 2
    )
    assert popular() == [before[0], *before[2:5]]
    assert (
        call(service, "/stock", {"out": []}, **warehouse)[1]["out"] == 0 and popular() == before[:4]
    )
    service.restock(Stock(frozenset(before[:1]), revision=1))
    assert popular() == before[:4], "an older revision came late"


def test_stock_that_changes_while_a_model_is_loaded_holds_for_that_model(
    service: Service, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = call(service, "/recommend", {"user_id": "u0", "k": 1})[1]["item_ids"]
    test_request = Recommender.recommend

    def recommend(self: Recommender, *given: Any) -> Any:
        service.restock(service.stock.after(StockChange(out=best)))
        return test_request(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(Recommender, "recommend", recommend)
        service.adopt(bundle, {"uri": "models:/pocket/2", "version": "2"})
    assert best[0] not in call(service, "/recommend", {"user_id": "u0", "k": 9})[1]["item_ids"]


def test_description_of_the_server_keeps_no_replaced_model_in_memory(
    service: Service, bundle: Bundle
) -> None:
    assert call(service, "/openapi.json", method="GET")[0] == 200
    replaced = weakref.ref(service._held["a"][0])
    service.adopt(bundle, {"uri": "models:/pocket/2", "version": "2"})
    gc.collect()
    assert replaced() is None
    assert '"2"' in json.dumps(call(service, "/openapi.json", method="GET")[1])


def test_callers_and_stock_need_different_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLERS", "one token for everything")
    monkeypatch.setenv("STOCK", "one token for everything")
    settings = ServeConfig(token_env="CALLERS", stock_token_env="STOCK")
    with pytest.raises(ConfigError, match="have the same token, so every caller could change"):
        tokens_of(settings)
    monkeypatch.setenv("STOCK", "another token for the stock")
    assert len({*vars(tokens_of(settings)).values()}) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, 'stock: expected either {"out": [all item ids that are out of stock]}'),
        ({"out": [], "add": ["i1"]}, "stock: expected either {"),
        ({"out": [3]}, "stock: out.0: expected a string"),
        ({"sold": ["i1"]}, "stock: sold: unknown field; expected one of: add, out, remove"),
        ({"ad": ["i1"]}, "stock: ad: unknown field; did you mean add? Expected one of: add, out"),
        ([], "stock: expected an object, got list"),
        (b"{", "the body is not valid JSON"),
    ],
)
def test_invalid_stock_change_is_refused(service: Service, change: Any, message: str) -> None:
    service.limits = replace(service.limits, stock_sha256=None)
    status, shown = call(service, "/stock", change)
    assert status == 400 and message in shown["error"] and service.stock == Stock()


def test_stock_file_survives_a_restart(tmp_path: Path) -> None:
    path = str(tmp_path / "of the shop" / "stock.json")
    assert read_stock(path, "serve.stock_file") == Stock()
    stock = Stock().after(StockChange(out=["b", "a"])).after(StockChange(add=["c"], remove=["a"]))
    write_stock(path, stock)
    assert (
        read_stock(path, "serve.stock_file") == stock
        and stock.out == {"b", "c"}
        and stock.revision == 2
    )
    assert [one.name for one in Path(path).parent.iterdir()] == ["stock.json"]
    Path(path).write_text('{"out": ["b"]}', encoding="utf-8-sig")  # as some editors save it
    assert read_stock(path, "serve.stock_file").out == {"b"}
    Path(path).write_text('{"out": "everything"}')
    with pytest.raises(ConfigError, match=r"serve\.stock_file: .* is not a stock file"):
        read_stock(path, "serve.stock_file")


REFUSED = [
    ("/recommend", {"item_id": "i1"}, 400, "item_id: unknown field"),
    ("/similar", {"user_id": "u0"}, 400, "item_id: missing"),
    (
        "/similar",
        [{"item_id": "i1"}, {"item_id": "x"}],
        400,
        "request 1: item_id: the model does not know 'x'",
    ),
    (
        "/recommend",
        [{"user_id": "u0"}, {"user_id": "u0", "filters": {"a": 1}}],
        400,
        "request 1: filters.a: unknown",
    ),
    ("/recommend", b"{nope", 400, "not valid JSON"),
    ("/recommend", b'{"user_id": NaN}', 400, "NaN is not a JSON number"),
    ("/recommend", b"[" * 1900, 400, "the body is not valid JSON: nested too deeply"),
    ("/recommend", b'{"a":' * 300 + b"1" + b"}" * 300, 400, "unknown field"),
    (
        "/recommend",
        b'{"user_id": "u0", "context": ' + b'{"a":' * 300 + b"1" + b"}" * 301,
        400,
        "context",
    ),
    ("/recommend", b'{"user_id": ' + b"[" * 900 + b"]" * 900 + b"}", 400, "user_id: got [[[["),
    ("/recommend", b'{"user_id": "u0", "k": 1e999}', 400, "the number 1e999 is too large"),
    ("/recommend", b'{"user_id": "u0", "k": ' + b"9" * 1900 + b"}", 400, "k: got 999"),
    (
        "/recommend",
        b'{"user_id": "u0", "k": 2, "k": 3}',
        400,
        "the key 'k' appears twice in one object",
    ),
    ("/recommend", b'{"user_id": "u0\xff"}', 400, "byte 15 is not valid UTF-8"),
    (
        "/recommend",
        {"user_id": "u0", "exclude_sen": False},
        400,
        "exclude_sen: unknown field; did you mean exclude_seen?",
    ),
    (
        "/invocations",
        {"inputs": [{"user_id": "u0", "exclude_sen": False}]},
        400,
        "exclude_sen: unknown field",
    ),
    (
        "/invocations",
        {"inputs": {"history": ["i1"], "friends": [7]}},
        400,
        "friends[0]: got 7",
    ),
    (
        "/recommend",
        [{"user_id": "u0", "k": 900}] * 2,
        413,
        "lists with 1,800 items in total (k + offset,",
    ),
    (
        "/recommend",
        [{"user_id": "u0", "k": 10, "offset": 890}] * 2,
        413,
        "lists with 1,800 items in total",
    ),
    (
        "/similar",
        [{"item_id": "i1", "diversify": {"strength": 0.5, "pool": 900}}] * 2,
        413,
        "lists with 1,800 items",
    ),
    (
        "/recommend",
        "u0",
        400,
        "expected an object with user_id, history, friends or attributes, got 'u0'",
    ),
    ("/recommend", {"user_id": 7}, 400, "user_id: got 7"),
    ("/recommend", [{"user_id": "u0"}, {"k": 3}], 400, "request 1: needs at least one of user_id"),
    (
        "/recommend",
        {"history": [{"item_id": "i1", "event_type": "x"}]},
        400,
        "expected one of: buy, view",
    ),
    (
        "/recommend",
        {"user_id": "u0", "attributes": {"age": 3}},
        400,
        "attributes.age: unknown field",
    ),
    ("/recommend", [{"user_id": "u0"}] * 4, 413, "got 4 requests, expected at most 3"),
    ("/recommend", b" " * 2001, 413, "more than 2000 bytes"),
    (
        "/invocations",
        {"rows": []},
        400,
        "one of dataframe_records, dataframe_split, inputs, instances",
    ),
    ("/invocations", {"inputs": [], "more": 1}, 400, "more: unknown key"),
    ("/invocations", {"inputs": [{"user_id": "u0"}], "params": {"q": 1}}, 400, "params: expected"),
    ("/invocations", {"inputs": {"user_id": ["a"], "k": [1, 2]}}, 400, "differ in length"),
    (
        "/invocations",
        {"dataframe_split": {"columns": ["user_id"], "data": [["a", 1]]}},
        400,
        "expected 1 values in every row",
    ),
    ("/nowhere", {}, 404, "expected one of: /recommend"),
]


@pytest.mark.parametrize(
    ("path", "body", "status", "message"), REFUSED, ids=[str(row[1])[:30] for row in REFUSED]
)
def test_refusals_name_the_reason(
    service: Service, path: str, body: Any, status: int, message: str
) -> None:
    found, content = call(service, path, body)
    shown = content["message" if path == "/invocations" else "error"]
    assert (found, "\n" in shown) == (status, False) and message in shown
    assert isinstance(body, list) or path == "/invocations" or "request 0" not in shown


def test_wrong_methods_types_and_tokens_are_refused(service: Service) -> None:
    assert call(service, "/recommend", method="GET")[0] == 405
    assert call(service, "/recommend", {"user_id": "u0"}, **{"content-type": "text/csv"})[0] == 415
    service.limits = replace(service.limits, token_sha256=token_sha256("open sesame, please"))
    assert call(service, "/health", method="GET")[0] == 200, (
        "who looks whether it lives needs no token"
    )
    for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": "open sesame, please"}):
        assert call(service, "/model", method="GET", **given)[0] == 401
    assert call(service, "/model", method="GET", authorization="Bearer open sesame, please") == (
        200,
        ABOUT,
    )


def test_call_with_too_many_scores_is_refused(service: Service) -> None:
    rows = [{"user_id": "u0"}] * 3
    service.limits = replace(service.limits, max_scores=3 * 12)
    assert call(service, "/recommend", rows)[0] == 200, "three requests of twelve items"
    service.limits = replace(service.limits, max_scores=3 * 12 - 1)
    status, shown = call(service, "/recommend", rows)
    assert status == 413 and "36 scores (3 requests × 12 items)" in shown["error"]
    assert "serve.max_scores" in shown["error"]


LARGE: list[dict[str, Any]] = [{"user_id": f"u{row % 4}", "k": 3} for row in range(100)]


def large_limits() -> Limits:
    return Limits(max_bytes=1 << 20, max_requests=100)


def test_large_call_is_sliced_and_small_calls_run_in_between(
    service: Service, bundle: Bundle
) -> None:
    service.limits = large_limits()
    expected = [answer.to_dict() for answer in Recommender(bundle).recommend(parse_requests(LARGE))]
    order: list[int] = []

    async def ask(job: Job) -> Outcome:
        order.append(len(job))
        await asyncio.sleep(0)
        return service.answer([job])[0]

    async def both() -> list[Any]:
        body = json.dumps(LARGE).encode()
        large = [
            service.handle(Incoming("POST", "/recommend", {}, body), ask, ask) for _ in range(2)
        ]
        small = service.handle(Incoming("POST", "/recommend", {}, b'{"user_id": "u0"}'), ask, ask)
        return list(await asyncio.gather(*large, small))

    first, second, small = asyncio.run(both())
    assert small.status == 200 and first.body == second.body
    for found, answer in zip(json.loads(first.body), expected, strict=True):
        assert found["item_ids"] == answer["item_ids"] and found["scores"] == pytest.approx(
            answer["scores"], rel=1e-4
        )
    assert max(order) <= 32 and order.index(1) <= 2, (
        "it waits for one slice at most, however many calls are large"
    )


def test_error_in_a_later_slice_counts_from_the_beginning(service: Service) -> None:
    service.limits = large_limits()
    rows = [*LARGE[:70], {"history": [{"item_id": "i1", "event_type": "x"}]}]
    status, shown = call(service, "/recommend", rows)
    assert status == 400 and shown["error"].startswith("request 70: history[0].event_type: got 'x'")


def test_call_is_answered_by_one_version(service: Service, bundle: Bundle) -> None:
    service.limits = large_limits()
    asked = 0

    async def ask(job: Job) -> Outcome:
        nonlocal asked
        asked += 1
        if asked == 3:
            service.adopt(bundle, {"version": "4"})
        return service.answer([job])[0]

    reply = asyncio.run(
        service.handle(Incoming("POST", "/recommend", {}, json.dumps(LARGE).encode()), ask, ask)
    )
    assert reply.status == 200 and dict(reply.headers)["X-Model-Version"] == "4"
    assert asked == 3 + 4, "from the beginning once the other version answers"

    async def changing(job: Job) -> Outcome:
        nonlocal asked
        asked += 1
        service.adopt(bundle, {"version": str(asked)})
        return service.answer([job])[0]

    reply = asyncio.run(
        service.handle(Incoming("POST", "/recommend", {}, json.dumps(LARGE).encode()), changing)
    )
    assert reply.status == 503 and dict(reply.headers)["Retry-After"] == "1"


@pytest.mark.parametrize("path", ["/recommend", "/invocations"])
def test_body_read_in_another_process_gets_the_same_answer(service: Service, path: str) -> None:
    service.limits = large_limits()
    body = json.dumps({"inputs": LARGE} if path == "/invocations" else LARGE).encode()
    slices = read_ahead(path, body, service.limits, service.num_scored(3))
    assert isinstance(slices, Slices) and len(slices.parts) > 1 and slices.num_requests == 100

    async def ask(job: Job) -> Outcome:
        return service.answer([job])[0]

    whole = asyncio.run(service.handle(Incoming("POST", path, {}, body), ask))
    ahead = asyncio.run(
        service.handle(Incoming("POST", path, {}, slices=pickle.loads(pickle.dumps(slices))), ask)
    )
    assert whole.status == 200 and whole == ahead
    for bad, status in (
        (b"{", 400),
        (json.dumps([*LARGE, {}]).encode(), 413),
        (json.dumps([{"k": 5}]).encode(), 400),
    ):
        error = read_ahead("/recommend", bad, service.limits, 12)
        assert isinstance(error, CallError) and error.status == status
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), again.status) == (str(error), status)


def test_internal_error_reveals_nothing_to_the_caller(service: Service) -> None:
    async def ask(job: Job) -> Outcome:
        raise ZeroDivisionError("a secret")

    reply = asyncio.run(
        service.handle(Incoming("POST", "/recommend", {}, b'{"user_id": "u0"}'), ask)
    )
    assert reply.status == 500 and b"secret" not in reply.body


def test_bad_call_fails_alone_in_its_batch(service: Service, bundle: Bundle) -> None:
    good = [{"user_id": "u0"}]
    bad = [
        {"user_id": "u1"},
        {"history": [{"item_id": "i1", "event_type": "x"}]},
    ]
    outcomes = service.answer([parse_requests(rows) for rows in (good, bad, good)])
    first, second, third = outcomes
    assert isinstance(second, RequestError) and str(second).startswith("request 1: history[0]")
    assert isinstance(first, Answered) and isinstance(third, Answered) and first == third
    assert first.answers == Recommender(bundle).recommend(parse_requests(good))


def test_fault_of_the_server_fails_one_call_of_a_batch(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Recommender.answer

    def faulty(recommender: Recommender, requests: Job, *more: Any, **named: Any) -> Any:
        if any(getattr(request, "user_id", "") == "u1" for request in requests):
            raise ZeroDivisionError("a secret")
        return answer(recommender, requests, *more, **named)

    monkeypatch.setattr(Recommender, "answer", faulty)
    good, bad = (parse_requests([{"user_id": user}]) for user in ("u0", "u1"))
    first, second, third = service.answer([good, bad, good])
    assert isinstance(second, ZeroDivisionError)
    assert isinstance(first, Answered) and isinstance(third, Answered)
    status, shown = call(service, "/recommend", {"user_id": "u1"})
    assert status == 500 and "secret" not in shown["error"]


def test_model_that_cannot_answer_is_not_adopted(service: Service, bundle: Bundle) -> None:
    before = call(service, "/recommend", {"user_id": "u0"})
    broken = replace(bundle, titles=[])
    with pytest.raises(IndexError):
        service.adopt(broken, {"version": "4"})
    assert service.about == ABOUT and call(service, "/recommend", {"user_id": "u0"}) == before
    service.adopt(bundle, {"version": "4"})
    assert call(service, "/health", method="GET")[1]["version"] == "4"
    [found] = service.answer([parse_requests([{"user_id": "u0"}])])
    assert isinstance(found, Answered) and found.version == "4"


def test_counts_of_replicas_are_added() -> None:
    one, two = Counts(), Counts()
    for counts in (one, one, two):
        counts.add("calls_total", path="/recommend", status="200")
    one.took("/recommend", 0.003)
    two.took("/recommend", 0.2)
    two.took("/recommend", 20.0)
    text = exposition([one.snapshot(), two.snapshot()], {"version": '3"'}, 2)
    lines = text.splitlines()
    assert 'recsys_calls_total{path="/recommend",status="200"} 3' in lines
    bucket = 'recsys_call_seconds_bucket{{path="/recommend",le="{}"}} {}'
    assert bucket.format("0.0025", 0) in lines and bucket.format("0.005", 1) in lines
    assert bucket.format("0.25", 2) in lines and bucket.format("+Inf", 3) in lines
    assert 'recsys_call_seconds_sum{path="/recommend"} 20.203000' in lines
    assert 'recsys_model_info{version="3\\""} 1' in lines and "recsys_replicas 2" in lines


def test_followed_folder_changes_version_with_its_content(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "pulled/bundle")
    followed = FollowedModel(str(tmp_path / "pulled"), "")
    first = followed.version()
    found, about = followed.load(first)
    assert found.item_ids and about["uri"] == "pulled" and about["dataset"]["name"] == "handmade"
    assert "/" not in json.dumps({**about, "card": "", "metrics": {}}), "no path of this machine"
    shown = json.loads(health(about).body)
    assert (shown["model"], len(shown["version"])) == ("pulled", 12)
    assert first.endswith(shown["version"])
    assert followed.version() == first
    description = tmp_path / "pulled/bundle/bundle.json"
    description.write_text(description.read_text().replace('"created": "2', '"created": "3'))
    assert followed.version() != first
