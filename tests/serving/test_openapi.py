"""The description of the server agrees with the server: paths, requests, replies and refusals."""

from __future__ import annotations

import ast
import asyncio
import base64
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from jsonschema import Draft202012Validator
from test_front import call as call_bytes
from test_front import read_reply

from recsys.bundle.layout import Bundle
from recsys.config import build_config
from recsys.data.context_columns import ContextColumn
from recsys.data.histories import Split as Part
from recsys.errors import RequestError
from recsys.registry.followed_model import FollowedModel
from recsys.retrieval.conditions import OPERATORS, parse_filters
from recsys.retrieval.item_attributes import ItemAttributes
from recsys.serving.access import token_sha256
from recsys.serving.admission import Limits
from recsys.serving.answer_log import AnswerLog
from recsys.serving.api_page import docs
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.calls import METHODS, RECOMMEND, CallError, Reply, parse_rows, read_rows
from recsys.serving.experiment_split import Split
from recsys.serving.exploration import Explorer
from recsys.serving.field_texts import DESCRIPTIONS
from recsys.serving.front import Front, TimeLimits
from recsys.serving.interleaving import Interleaver
from recsys.serving.listener import Listener
from recsys.serving.model_traits import Attribute, ModelTraits, attribute_of, traits_of
from recsys.serving.openapi import OPEN_TO_ALL, STATUSES, ServerTraits, document
from recsys.serving.requests import Job, Request, SimilarRequest
from recsys.serving.schemas import READ, WRITTEN
from recsys.serving.service import Incoming, Outcome, Service
from recsys.serving.stock import parse_change
from recsys.training.fresh_model import build_graphs, build_model
from tests.handmade import HISTORIES, ITEMS, write_dataset

ROOT = Path(__file__).parents[2]
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
CALLERS, WAREHOUSE = "the token of callers", "the token of the warehouse"
SERVER = ServerTraits(1000, 10_000_000, True, True)
OPEN = ServerTraits(1000, 10_000_000)
ABOUT = {"uri": "models:/pocket/3", "version": "3"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows attributes of items and users, a context column and two event types."""
    place = tmp_path_factory.mktemp("openapi")
    granularities = ("behaviour", "evolution", "social", "collaborative", "profile")
    model: dict[str, Any] = {name: {"enabled": True} for name in granularities}
    model["profile"] |= {"min_frequency": 1}
    model["evolution"] |= {"query_context": ["weather"]}
    config = build_config(
        {"model": {"width": 8, "max_history": 4, "granularities": model, "item": {"init_std": 0.5}}}
    )
    dataset = write_dataset(
        place / "dataset",
        HISTORIES,
        ITEMS,
        event_types=("view", "buy"),
        friends=((0, 3), (1, 2)),
        text_width=6,
        item_columns={
            "kind": pa.array(["a", "b", "c"] * (ITEMS // 3)),
            "price": pa.array([float(item) for item in range(ITEMS)]),
            "since": pa.array([datetime(2026, 1, 1 + item, tzinfo=UTC) for item in range(ITEMS)]),
            "colours": pa.array([["red", "blue"], ["red"], None] * (ITEMS // 3)),
        },
        user_columns={
            "age": pa.array([20.0, 30.0, 40.0, None, 25.0, 35.0]),
            "town": pa.array(["Ulm", "Bonn", "Ulm", "Bonn", None, "Ulm"]),
        },
        context=(ContextColumn("weather", ("rain", "sun")),),
        codes=[[[2 + (u + at) % 2] for at in range(len(row))] for u, row in enumerate(HISTORIES)],
    )
    torch.manual_seed(0)
    trained = build_model(config.model, config.train, dataset, Part.VALID)
    with torch.no_grad():
        for parameter in trained.encoders.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    frozen = trained.freeze(build_graphs(dataset, Part.VALID, trained))
    write_bundle(place / "bundle", frozen, dataset, {})
    return place / "bundle"


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return read_bundle(folder)


@pytest.fixture(scope="module")
def known(bundle: Bundle) -> dict[str, Any]:
    """The document of a server with this model."""
    return document(SERVER, traits_of(bundle), ABOUT)


def validator(api: dict[str, Any], schema: Any) -> Draft202012Validator:
    named = {"$ref": f"#/components/schemas/{schema}"} if isinstance(schema, str) else schema
    return Draft202012Validator({**named, "components": api["components"]})


# ------------------------------------------------------------------------------------ the document


def all_documents(bundle: Bundle) -> Iterator[dict[str, Any]]:
    traits = traits_of(bundle)
    other = ModelTraits(("x",), ("X",), {"kind": Attribute("number")})
    yield document(OPEN)
    yield document(SERVER, traits, ABOUT)
    yield document(SERVER, traits.merged(other), {**ABOUT, "ab": {"share": 0.5, "model": ABOUT}})


def test_document_is_valid_openapi_and_its_examples_are_valid(bundle: Bundle) -> None:
    checks = pytest.importorskip("openapi_spec_validator")
    for api in all_documents(bundle):
        api = json.loads(json.dumps(api, allow_nan=False))
        assert [str(error) for error in checks.OpenAPIV31SpecValidator(api).iter_errors()] == []
        for operations in api["paths"].values():
            for operation in operations.values():
                shown = [operation.get("requestBody", {}), *operation["responses"].values()]
                for part in shown:
                    for content in part.get("content", {}).values():
                        for example in content.get("examples", {}).values():
                            validator(api, content["schema"]).validate(example["value"])


def test_paths_and_methods_are_those_of_the_server(known: dict[str, Any]) -> None:
    found = {path: [name.upper() for name in methods] for path, methods in known["paths"].items()}
    assert found == {path: [method] for path, method in METHODS.items()}
    for path, methods in known["paths"].items():
        for operation in methods.values():
            token = [name for one in operation["security"] for name in one]
            expected = ["stockToken"] if path == "/stock" else ["callerToken"]
            assert token == ([] if path in OPEN_TO_ALL else expected)
            assert ("401" in operation["responses"]) == bool(token)
    assert "callerToken" not in json.dumps(document(OPEN))


def test_every_status_that_the_code_refuses_with_is_described(known: dict[str, Any]) -> None:
    refused = {431}  # sent by the listener as bytes
    for path in (ROOT / "recsys/serving").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "CallError":
                status = node.args[0]
                if isinstance(status, ast.Constant):
                    refused.add(int(status.value))
    assert refused == set(STATUSES)
    listed = {
        int(status)
        for methods in known["paths"].values()
        for operation in methods.values()
        for status in operation["responses"]
        if status.isdigit()
    }
    assert listed - {200} == refused - {404, 405}, "those two belong to other paths and methods"


def test_every_field_is_described(known: dict[str, Any]) -> None:
    components = known["components"]["schemas"]
    assert {one.__name__ for one in (*READ, *WRITTEN)} == set(DESCRIPTIONS)
    for one in READ:
        assert set(one.model_fields) == set(DESCRIPTIONS[one.__name__]) - {""}
        assert set(one.model_fields) == set(components[one.__name__]["properties"])
    for answer in WRITTEN:
        names = {field.name for field in fields(answer)}
        assert names == set(DESCRIPTIONS[answer.__name__]) - {""}
        assert names == set(components[answer.__name__]["properties"])


def test_document_names_what_the_model_knows(known: dict[str, Any], bundle: Bundle) -> None:
    components = known["components"]["schemas"]
    filters = components["Filters"]["properties"]
    assert list(filters) == ["kind", "price", "since", "colours"]
    assert filters["price"]["description"] == "A number, from 0 to 11."
    assert "2026-01-01T00:00:00+00:00" in filters["since"]["description"]
    assert components["UserAttributes"]["properties"]["town"]["description"] == "A category."
    assert "“sun”" in components["Context"]["properties"]["weather"]["description"]
    event_type = components["HistoryEvent"]["properties"]["event_type"]
    assert event_type["anyOf"][0] == {"enum": ["view", "buy"]}
    assert components["Request"]["properties"]["exclude_seen"]["default"] is True
    assert known["info"]["x-model"] == {"models:/pocket/3": "3"}
    older = traits_of(replace(bundle, attributes=None))
    assert (
        "no attributes" in document(OPEN, older)["components"]["schemas"]["Filters"]["description"]
    )


# ------------------------------------------------------- the schemas accept what the parsers accept

VALUES: list[Any] = [
    None, "", "x", "auto", 0, 1, 5, 11, -1, 0.5, 2000, 10_000, True, False, {}, [], ["x"], [1],
    [None], [{"item_id": "x"}], [{"item_id": 1}], [{"item_id": "x", "sort": 1}],
    [{"item_id": "x", "event_type": "buy", "timestamp": 1_700_000_000, "context": {"a": "b"}}],
    {"factor": 2, "items": ["x"]}, {"factor": 2}, {"factor": 0, "items": ["x"]},
    {"factor": 2, "items": ["x"], "filters": {}}, {"factor": 2, "items": None, "filters": {"a": 1}},
    [{"factor": 1000, "filters": {"a": [1, "b"]}}], [{"factor": 1.5, "items": ["x"], "a": 1}],
    [{"factor": 2, "items": ["x"]}] * 21,
    {"strength": 0.5}, {"strength": 2}, {"attribute": "a"}, {"attribute": "a", "most": 1},
    {"strength": 0.5, "most": 1}, {"strength": 0.5, "attribute": "a", "most": 2, "pool": 9},
    {"pool": 9}, {"strength": 1, "pool": 0}, {"strength": 0.1, "x": 1},
    {"a": {}}, {"a": None}, {"a": "b"}, {"a": []}, {"a": [None]}, {"a": {"is": 1}},
    {"a": {"known": True}}, {"a": {"known": 1}}, {"a": {"in": 1}}, {"a": {"in": ["b"]}},
    {"a": {"under": ["b"]}}, {"a": {"under": [1]}}, {"a": {"lt": [1]}}, {"a": {"eq": {"b": 1}}},
    {str(number): 1 for number in range(51)},
]  # fmt: skip


def accepts(parse: Any, *given: Any) -> bool:
    try:
        parse(*given)
    except (CallError, RequestError, ValueError):
        return False
    return True


@pytest.mark.parametrize(
    ("kind", "path", "needed"),
    [(Request, "/recommend", {"user_id": "u"}), (SimilarRequest, "/similar", {"item_id": "i"})],
)
def test_schema_accepts_what_the_parser_accepts(kind: Any, path: str, needed: Any) -> None:
    schema = validator(document(OPEN), kind.__name__)
    looser = {"at", "attributes", "context"}  # the model checks the values, the parser does not
    bodies = [needed | {name: value} for name in (*kind.model_fields, "sort") for value in VALUES]
    bodies += [{name: value} for name in kind.model_fields for value in VALUES]
    for body in bodies:
        if path == "/recommend" and looser & body.keys():
            continue
        assert schema.is_valid(body) == accepts(parse_rows, path, [body]), body


def test_schema_of_stock_accepts_what_the_parser_accepts() -> None:
    schema = validator(document(OPEN), "StockChange")
    bodies = [{name: value} for name in ("out", "add", "remove", "sold") for value in VALUES]
    bodies += [
        {},
        {"out": [], "add": []},
        {"add": ["x"], "remove": ["y"]},
        {"out": [], "add": None},
    ]
    for body in bodies:
        assert schema.is_valid(body) == accepts(parse_change, body), body


def test_schema_has_the_limits_of_lists() -> None:
    api = document(OPEN)["components"]["schemas"]
    for name, most in (("candidates", 100_000), ("exclude", 100_000), ("history", 10_000)):
        assert api["Request"]["properties"][name]["anyOf"][0]["maxItems"] == most
        body = {"user_id": "u", name: ["x"] * (most + 1)}
        assert not accepts(parse_rows, "/recommend", [body])
        assert accepts(parse_rows, "/recommend", [{**body, name: ["x"] * most}])


@pytest.mark.parametrize("name", ["at", "history"])
def test_schema_of_times_accepts_all_forms(name: str) -> None:
    schema = validator(document(OPEN), "Request")
    for time in ("2026-11-27 18:00", "2026-11-27T18:00:00Z", 1_795_802_400, 1.5e9, None):
        value = time if name == "at" else [{"item_id": "x", "timestamp": time}]
        body = {"user_id": "u", name: value}
        assert schema.is_valid(body) and accepts(parse_rows, "/recommend", [body])
    assert not schema.is_valid({"user_id": "u", "at": [1]})


def test_schema_of_invocations_accepts_what_the_parser_accepts() -> None:
    schema = validator(document(OPEN), "Invocations")
    row: dict[str, Any] = {"user_id": "u", "k": 5.0, "history": None, "explain": None}
    split = {"columns": ["user_id", "k"], "data": [["u", 5]]}
    bodies: list[Any] = [
        {"inputs": [row]}, {"inputs": row}, {"instances": [{"item_id": "i"}, row]}, {}, [], None,
        {"inputs": {"user_id": ["u", "v"], "k": [1, None]}}, {"dataframe_records": [row]},
        {"dataframe_split": split}, {"dataframe_split": {**split, "index": [0]}},
        {"dataframe_split": {"columns": ["user_id"]}}, {"dataframe_split": [row]},
        {"inputs": [row], "params": {"k": 3, "exclude_seen": True}}, {"params": {"k": 3}},
        {"inputs": [row], "params": None}, {"inputs": [row], "params": {"k": None}},
        {"inputs": [row], "params": {"offset": 3}},
        {"inputs": [row], "instances": [row]}, {"inputs": [row], "sort": 1}, {"inputs": "u"},
        {"inputs": [{**row, "sort": 1}]}, {"inputs": [{"user_id": 7}]}, {"inputs": []},
        {"inputs": [{"k": 5}]}, {"inputs": {"sort": [1]}}, {"inputs": [{**row, "k": "5"}]},
    ]  # fmt: skip

    def parse(body: Any) -> None:
        parse_rows("/invocations", read_rows("/invocations", json.dumps(body).encode()).rows)

    for body in bodies:
        assert schema.is_valid(body) == accepts(parse, body), body


def test_schema_of_filters_accepts_what_the_attributes_accept(
    bundle: Bundle, known: dict[str, Any]
) -> None:
    schema = validator(known, "Filters")
    attributes = bundle.attributes
    assert isinstance(attributes, ItemAttributes)

    def apply(filters: Any) -> None:
        attributes.mask(parse_filters(filters), "filters")

    day = "2026-01-05"
    operands: list[Any] = [None, "a", day, 5, 1.5, True, [], ["a"], [day], [5], [True], [None], {}]
    for name in (*attributes.columns, "size"):
        for condition in (*operands, *({op: one} for op in OPERATORS for one in operands)):
            if name == "since" and "a" in json.dumps(condition):
                continue  # a text that is not a time
            if name == "since" and condition in ({"under": "a"}, {"all": ["a"]}):
                continue
            filters = {name: condition}
            assert schema.is_valid(filters) == accepts(apply, filters), filters


# --------------------------------------------------------------------------------- replies are so


class InProcess:
    """A service as the replicas of a front."""

    def __init__(self, service: Service) -> None:
        self.service, self.is_ready, self.fails = service, True, False

    async def answer(self, incoming: Incoming) -> Reply:
        async def ask(job: Job) -> Outcome:
            if self.fails:
                raise ZeroDivisionError
            return self.service.answer([job])[0]

        return await self.service.handle(incoming, ask)

    async def metrics(self, own: dict[str, Any]) -> Reply:
        return self.service.metrics([own, self.service.counts.snapshot()], 1)

    def about(self) -> dict[str, Any] | None:
        return self.service.about if self.is_ready else None


LIMITS = Limits(
    100_000,
    20,
    token_sha256(CALLERS),
    max_answers=1500,
    stock_sha256=token_sha256(WAREHOUSE),
)


def full_service(folder: Path, log: Path) -> Service:
    """A service whose answers have every field: two versions, exploration, a log."""
    service = Service(
        replace(LIMITS, token_sha256="", stock_sha256=None),
        split=Split(0.5, "ab"),
        explorer=Explorer(0.999, 5, "explore"),
        log=AnswerLog(str(log)),
        server=LIMITS.server,
    )
    followed = FollowedModel(str(folder), "")
    for side in ("a", "b"):
        service.adopt(*followed.load(followed.version()), side)  # type: ignore[arg-type]
    return service


class Checked:
    """Calls to a front on a socket, whose replies are compared with the document."""

    def __init__(self, front: Front, api: dict[str, Any]) -> None:
        self.listener = Listener(front, "127.0.0.1", 0)
        self.api, self.seen = api, set()

    async def __call__(
        self, path: str, body: Any = b"", status: int = 200, method: str = "", *more: str
    ) -> Any:
        token = f"Authorization: Bearer {WAREHOUSE if path == '/stock' else CALLERS}"
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = more if any("uthorization" in line for line in more) else (token, *more)
        method = method or METHODS[path]
        reader, writer = await asyncio.open_connection("127.0.0.1", self.listener.port)
        writer.write(call_bytes(path, raw, method, *headers))
        found, said, content = await read_reply(reader)
        writer.close()
        assert found == status, content
        # every path has one method
        [operation] = self.api["paths"].get(path, self.api["paths"][RECOMMEND]).values()
        described = operation["responses"].get(str(found), operation["responses"]["default"])
        self.seen.add((path, found))
        assert str(found) in operation["responses"] or found in (404, 405, 413)
        for name, header in described.get("headers", {}).items():
            assert name.lower() in said or not header.get("required")
        kind = said["content-type"].split(";")[0]
        schema = described["content"][kind]["schema"]
        if kind != "application/json":
            return content.decode()
        validator(self.api, schema).validate(json.loads(content))
        return json.loads(content)


def test_replies_of_a_server_fit_the_document(folder: Path, tmp_path: Path) -> None:
    backend = InProcess(full_service(folder, tmp_path / "log"))
    front = Front(LIMITS, TimeLimits(body_timeout_s=0.3), backend)

    async def main() -> None:
        ask = Checked(front, document(LIMITS.server))
        api = await ask("/openapi.json")
        ask.api = api
        emitted = {"Answer": set(), "SimilarAnswer": set()}
        for path, operations in api["paths"].items():
            for operation in operations.values():
                body = operation.get("requestBody")
                examples = body["content"]["application/json"]["examples"] if body else {"": None}
                for example in examples.values():
                    found = await ask(path, example["value"] if body else b"")
                    for one in answers_of(found):
                        emitted["SimilarAnswer" if "why" in one else "Answer"] |= one.keys()
        rich = {
            "user_id": "u0",
            "candidates": ["i1", "i2", "?"],
            "boost": {"factor": 2, "items": ["i1"]},
        }
        rows = [{**rich, "explain": True, "history": ["i1"]}, {"user_id": "u1", "friends": ["u0"]}]
        rows += [{"user_id": f"someone {number}", "history": ["i1", "i2"]} for number in range(9)]
        for interleaver in (None, Interleaver("ab")):
            backend.service.interleaver = interleaver
            for one in await ask("/recommend", rows):
                emitted["Answer"] |= one.keys()
        similar = {"item_id": "i2", "exclude": ["?"], "boost": {"factor": 2, "items": ["i1"]}}
        emitted["SimilarAnswer"] |= (await ask("/similar", similar)).keys()
        for name, keys in emitted.items():
            assert keys == set(api["components"]["schemas"][name]["properties"]), "every key occurs"
        model = await ask("/model")
        assert model.keys() == api["components"]["schemas"]["ModelDescription"]["properties"].keys()
        page = await ask("/docs", b"", 200, "GET", "Authorization: none")
        assert page.startswith("<!doctype html>")
        await refused_calls(ask)
        backend.fails = True
        await ask("/recommend", {"user_id": "u0"}, 500)
        await ask("/invocations", {"inputs": {"user_id": "u0"}}, 500)
        backend.is_ready = False
        for path, method in METHODS.items():
            if path != "/metrics":
                await ask(path, {} if method == "POST" else b"", 503)
        await ask.listener.close()

    asyncio.run(main())


async def refused_calls(ask: Checked) -> None:
    """A refusal of every kind on every path that has it."""
    for path, method in METHODS.items():
        wrong = "GET" if method == "POST" else "POST"
        if path not in OPEN_TO_ALL:
            await ask(path, b"", 401, method, "Authorization: Bearer wrong")
            twice = (f"Authorization: Bearer {CALLERS}",) * 2
            await ask(path, b"", 400, method, *twice)
        await ask(path, b"", 400, method, "Sec-WebSocket-Key: x", "Upgrade: websocket")
        await ask(path, b"", 405, wrong)
        if method == "POST":
            await ask(path, b"{nope", 400)
            await ask(path, [7], 400)
            await ask(path, b"", 413, "POST", "Content-Length: 100001")
            await ask(path, b"", 415, "POST", "Content-Type: text/csv", "Content-Length: 10")
            await ask(path, b"", 408, "POST", "Content-Length: 10")
    await ask("/nowhere", b"", 404, "GET")
    await ask("/recommend", [{"user_id": "u0"}] * 21, 413)
    await ask("/recommend", [{"user_id": "u0", "k": 900}] * 2, 413)
    await ask("/invocations", {"inputs": {"user_id": "u0", "sort": 1}}, 400)
    await ask("/similar", {"item_id": "unheard of"}, 400)


def answers_of(found: Any) -> list[dict[str, Any]]:
    """The answers in a reply."""
    if isinstance(found, dict):
        found = found.get("predictions", [found])
    return [one for one in found if isinstance(one, dict) and "scores" in one]


def test_closed_stock_is_refused_as_described() -> None:
    api = document(OPEN)
    assert "answers 403" in api["paths"]["/stock"]["post"]["description"]
    service = Service(Limits(1000))
    reply = asyncio.run(
        service.handle(Incoming("POST", "/stock", {}, b"{}"), None)  # type: ignore[arg-type]
    )
    assert reply.status == 403
    schema = api["paths"]["/stock"]["post"]["responses"]["403"]["content"]["application/json"]
    validator(api, schema["schema"]).validate(json.loads(reply.body))


def test_document_follows_the_model(bundle: Bundle) -> None:
    service = Service(Limits(1000))
    service.adopt(bundle, ABOUT)

    def read() -> dict[str, Any]:
        reply = asyncio.run(
            service.handle(Incoming("GET", "/openapi.json", {}), None)  # type: ignore[arg-type]
        )
        return dict(json.loads(reply.body))

    assert read() == read() and "price" in json.dumps(read()["components"]["schemas"]["Filters"])
    service.adopt(replace(bundle, attributes=None), {**ABOUT, "version": "4"})
    assert read()["info"]["x-model"] == {"models:/pocket/3": "4"}
    assert read()["components"]["schemas"]["Filters"]["properties"] == {}


def test_attributes_without_values_are_described() -> None:
    columns = ItemAttributes.of(
        pa.table({"price": pa.array([None, None], pa.float64())}), 2
    ).columns
    assert attribute_of(columns["price"]) == Attribute("number")
    assert np.isnan(columns["price"].values_N).all()


# ----------------------------------------------------------------------------------------- the page


def test_page_is_complete_and_needs_nothing_from_elsewhere() -> None:
    for server in (OPEN, SERVER):
        reply, api = docs(server), document(server)
        page = reply.body.decode()
        policy = dict(reply.headers)["Content-Security-Policy"]
        for kind in ("style", "script"):
            [inline] = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
            assert f"{kind}-src 'sha256-{digest}'" in policy
        assert "unsafe" not in policy and "default-src 'none'" in policy
        assert re.findall(r"(?:https?:)?//[a-z]", re.sub(r"^\s*//.*", "", page, flags=re.M)) == []
        assert not re.search(r"<[^>]+\s(?:style|on\w+)=", page), "the policy would refuse it"
        for path, methods in api["paths"].items():
            for operation in methods.values():
                assert f'id="{operation["operationId"]}"' in page and path in page
        ids = set(re.findall(r'id="([^"]+)"', page))
        assert {f"schema-{name}" for name in api["components"]["schemas"]} <= ids
        assert set(re.findall(r'href="#([^"]+)"', page)) <= ids
    assert 'name="callerToken"' not in docs(OPEN).body.decode()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_page_sends_calls_in_a_browser(folder: Path, bundle: Bundle) -> None:
    pytest.importorskip("playwright.async_api")
    service = Service(replace(LIMITS, token_sha256="", stock_sha256=None), server=LIMITS.server)
    service.adopt(bundle, ABOUT)
    front = Front(LIMITS, TimeLimits(), InProcess(service))
    asyncio.run(_browse(front))


async def _browse(front: Front) -> None:
    from playwright.async_api import async_playwright

    listener = Listener(front, "127.0.0.1", 0)
    address, said, asked = f"http://127.0.0.1:{listener.port}/", [], []
    async with async_playwright() as started:
        with tempfile.TemporaryDirectory() as profile:
            context = await started.chromium.launch_persistent_context(
                profile,
                executable_path=CHROMIUM,
                args=["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"],
                viewport={"width": 360, "height": 800},
            )
            page = await context.new_page()
            page.on("console", lambda message: said.append(message.text))
            page.on("request", lambda request: asked.append(request.url))
            await page.goto(f"{address}docs")
            assert "price" not in await page.inner_text("#known")
            await page.fill("input[name=callerToken]", CALLERS)
            await page.keyboard.press("Tab")
            await page.wait_for_selector("#facts th")
            assert "price" in await page.inner_text("#facts")
            await page.select_option("#recommend select", "rules")
            await page.click("#recommend .buttons button")
            await page.wait_for_selector("#recommend .status.good")
            assert '"explanations"' in await page.inner_text("#recommend .answer")
            assert await page.evaluate("document.documentElement.scrollWidth") <= 360
            await context.close()
    await listener.close()
    assert said == [] and all(url.startswith(address) for url in asked)
