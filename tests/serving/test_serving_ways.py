"""One model, three ways of serving that give the same answers: MLflow's own server, Ray Serve, and
batch with Ray Data.

In one batch and with one thread, answers are equal to the last digit, because the same code
computes them. One by one, the last digits of float32 differ, because matrix products of another
shape round differently.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import venv
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recsys.config import Config, build_config
from recsys.data.context_columns import ContextColumn
from recsys.data.histories import Split
from recsys.errors import RequestError
from recsys.registry.mlflow_client import active_uris, client, tracking_uri
from recsys.registry.register import register
from recsys.registry.tracking import Tracker
from recsys.serving import model_holder
from recsys.serving.admission import Limits
from recsys.serving.batch import recommend_all
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.model_holder import ModelHolder
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_any, parse_requests
from recsys.serving.service import Answered, Service
from recsys.training.fresh_model import build_graphs, build_model
from tests.handmade import HISTORIES, ITEMS, write_dataset

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")
REQUESTS: list[dict[str, Any]] = [
    {"user_id": "u0", "k": 4},  # known
    {"user_id": "by history", "history": ["i1", "i2", "mystery"], "k": 3},
    # fresh
    {
        "user_id": "u1",
        "history": [{"item_id": "i9", "event_type": "buy", "timestamp": 1_900_000_000}],
        "k": 4,
    },
    {"user_id": "by friends", "friends": ["u0", "zoe"], "k": 3},
    {"user_id": "by attributes", "attributes": {"age": 30, "town": "Ulm"}, "k": 3},
    {"user_id": "u2", "context": {"weather": "sun"}, "k": 5, "exclude_seen": False},
    {"user_id": "nobody", "k": 6},  # popular items
    {
        "user_id": "u3",
        "filters": {"kind": ["a", "b"], "price": {"lt": 9}},
        "exclude": ["i1"],
        "k": 2,
        "offset": 1,
    },
    {
        "user_id": "u4",
        "boost": {"factor": 2, "filters": {"kind": "a"}},
        "candidates": ["i1", "i3", "i4", "x"],
        "k": 3,
    },
    {
        "user_id": "diverse",
        "history": ["i1"],
        "diversify": {"attribute": "kind", "most": 1},
        "explain": True,
        "k": 3,
    },
    {"user_id": "two more", "history": ["i1"], "k": 4, "offset": 4, "per_user_limit": 6},
    {"user_id": "no more", "history": ["i1"], "k": 4, "offset": 4, "per_user_limit": 4},
]
SIMILAR: dict[str, Any] = {"item_id": "i2", "by": "vectors", "filters": {"kind": "a"}, "k": 3}
BAD_RULE = {"user_id": "u0", "filters": {"kin": "a"}}
WRONG_RULE = "filters.kin: unknown attribute 'kin'; did you mean kind"
TOKEN = "a token of the warehouse"
MISTYPED = {"user_id": "u0", "exclude_sen": False}


class Served:
    """A registered model with text, order, friends, attributes and context."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        granularities = ("behaviour", "evolution", "social", "collaborative", "profile")
        model: dict[str, Any] = {name: {"enabled": True} for name in granularities}
        model["profile"] |= {"min_frequency": 1, "weight": 0.5}
        model["evolution"] |= {"query_context": ["weather"]}
        tree = {
            "run": {"dir": str(folder / "run")},
            "registry": {"name": "pocket", "alias": "champion"},
            "model": {
                "width": 8,
                "max_history": 4,
                "item": {"init_std": 0.5},
                "granularities": model,
            },
        }
        self.config: Config = build_config(tree)
        ages = pa.array([20.0, 30.0, 40.0, None, 25.0, 35.0])
        self.dataset = write_dataset(
            folder / "dataset",
            HISTORIES,
            ITEMS,
            event_types=("view", "buy"),
            friends=((0, 3), (1, 2)),
            text_width=6,
            item_columns={
                "kind": pa.array(["a", "b", "c"] * (ITEMS // 3)),
                "price": pa.array([float(place) for place in range(ITEMS)]),
            },
            user_columns={
                "age": ages,
                "town": pa.array(["Ulm", "Bonn", "Ulm", "Bonn", None, "Ulm"]),
            },
            context=(ContextColumn("weather", ("rain", "sun")),),
            codes=[
                [[2 + (user + place) % 2] for place in range(len(row))]
                for user, row in enumerate(HISTORIES)
            ],
        )
        self.uri = tracking_uri(self.config.tracking, self.config.run.dir)
        self.add(0)

    def add(self, seed: int) -> None:
        """Register another version, which becomes champion."""
        torch.manual_seed(seed)
        model = build_model(self.config.model, self.config.train, self.dataset, Split.VALID)
        with torch.no_grad():
            for parameter in model.encoders.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        self.bundle = self.folder / f"bundle{seed}"
        write_bundle(
            self.bundle,
            model.freeze(build_graphs(self.dataset, Split.VALID, model)),
            self.dataset,
            {},
        )
        with Tracker(self.config) as tracker:
            register(
                tracker,
                self.bundle,
                self.config.registry,
                {"model": {"ndcg@20": 0.25}},
                resumes=self.config.run.resume,
                replaces=self.config.update.replace,
            )

    def expected(self, bundle: Path | None = None) -> list[dict[str, Any]]:
        return [
            a.to_dict()
            for a in Recommender(read_bundle(bundle or self.bundle)).recommend(
                parse_requests(REQUESTS)
            )
        ]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(tmp_path_factory.mktemp("served"))


def assert_close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert [found[name] for name in ("item_ids", "titles", "source")] == [
        expected[name] for name in ("item_ids", "titles", "source")
    ]
    assert found["scores"] == pytest.approx(expected["scores"], rel=1e-5, abs=1e-6)
    for name, shares in expected["shares"].items():
        assert found["shares"][name] == pytest.approx(shares, rel=1e-5, abs=1e-6)


def without_nulls(row: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """A row of a data frame without the columns that only other rows have."""
    return {name: value for name, value in row.items() if value is not None or name in answer}


def test_requests_use_every_field(served: Served) -> None:
    answers = served.expected()
    assert [answer["source"] for answer in answers] == ["model"] * 6 + ["popularity"] + [
        "model"
    ] * 5
    assert answers[8]["boosts"] is not None and answers[8]["unknown_in_rules"] == {
        "candidates": ["x"]
    }
    assert answers[9]["explanations"][0]["sentence"]
    assert answers[1]["unknown_items"] == ["mystery"] and answers[3]["unknown_friends"] == ["zoe"]
    for place, name in ((3, "social"), (4, "profile"), (5, "evolution")):
        assert any(answers[place]["shares"][name])
    plain = Recommender(read_bundle(served.bundle)).recommend(
        parse_requests([{**REQUESTS[5], "context": None}])
    )[0]
    assert plain.shares["evolution"] != answers[5]["shares"]["evolution"], "the context counts"


def test_ways_of_serving_are_equal_in_one_process(served: Served) -> None:
    """The pyfunc model as MLflow loads it, the service that a replica of Ray Serve runs, and the
    recommender.
    """
    import mlflow

    with active_uris(served.uri):
        frame = mlflow.pyfunc.load_model("models:/pocket@champion").predict(REQUESTS)
    expected = served.expected()
    lengths = {answer["user_id"]: len(answer["item_ids"]) for answer in expected}
    assert lengths["two more"] == 2 and lengths["no more"] == 0
    for row, answer in zip(frame.to_dict("records"), expected, strict=True):
        assert without_nulls(row, answer) == answer
    [like] = [
        answer.to_dict()
        for answer in Recommender(read_bundle(served.bundle)).answer(parse_any([SIMILAR]))
    ]
    with active_uris(served.uri):
        [row] = (
            mlflow.pyfunc.load_model("models:/pocket@champion")
            .predict([SIMILAR])
            .to_dict("records")
        )
    assert {name: value for name, value in row.items() if value is not None} == like
    service = Service(Limits(10_000, 100))
    service.adopt(read_bundle(served.bundle), {"version": "1"})
    [outcome] = service.answer([parse_requests(REQUESTS)])
    assert (
        isinstance(outcome, Answered)
        and [answer.to_dict() for answer in outcome.answers] == expected
    )
    alone = service.answer([parse_requests([row]) for row in REQUESTS])
    for one, answer in zip(alone, expected, strict=True):
        assert isinstance(one, Answered) and one.answers[0].to_dict() == answer, (
            "a batch of calls is one batch"
        )


# ------------------------------------------------------------------------------- real servers, slow


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def post(url: str, content: Any, timeout: float = 200, **headers: str) -> Any:
    request = urllib.request.Request(
        url, json.dumps(content).encode(), {"Content-Type": "application/json", **headers}
    )
    with urllib.request.urlopen(request, timeout=timeout) as reply:
        return json.loads(reply.read())


def refused(url: str, content: Any, status: int) -> Any:
    """The reply to a call that must fail."""
    with pytest.raises(urllib.error.HTTPError) as found:
        post(url, content)
    assert found.value.code == status
    return json.loads(found.value.read())


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=120) as reply:
        return json.loads(reply.read())


@contextmanager
def started(
    words: list[str], log: Path, is_ready: Callable[[], bool], **environment: str
) -> Iterator[Any]:
    """A server in its own process group, from when it is ready until the end of the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            words,
            cwd=log.parent,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        try:
            until = time.monotonic() + 500
            while not is_ready():
                assert process.poll() is None and time.monotonic() < until, log.read_text()
                time.sleep(0.3)
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(200)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)


def answers_get(url: str) -> Callable[[], bool]:
    def is_ready() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=30) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    return is_ready


@contextmanager
def mlflow_server(
    model: str, folder: Path, port: int, python: Path = Path(sys.executable), uri: str = ""
) -> Iterator[Any]:
    bin_folder = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    words = [str(python), "-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local"]
    words += ["--host", "127.0.0.1", "--port", str(port)]
    environment = {"PATH": bin_folder, "PYTHONPATH": "", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment |= {"MLFLOW_TRACKING_URI": uri} if uri else {}
    ready = answers_get(f"http://127.0.0.1:{port}/ping")
    with started(words, folder / f"mlflow-{port}.log", ready, **environment) as process:
        yield process


@contextmanager
def ray_server(
    served: Served, folder: Path, port: int, *more: str, **environment: str
) -> Iterator[Any]:
    (folder / "config.yaml").write_text("model: {granularities: {evolution: {enabled: true}}}\n")
    words = [
        sys.executable,
        "-m",
        "pipelines.cli",
        "serve",
        "--config",
        "config.yaml",
        "--run.dir",
        str(folder / "run"),
    ]
    words += ["--tracking.uri", served.uri, "--registry.name", "pocket", "--serve.port", str(port)]
    log = folder / f"serve-{port}.log"
    with started(
        [*words, *more],
        log,
        lambda: "answer at" in log.read_text(),
        PYTHONPATH=str(ROOT),
        RAY_AUTH_MODE="disabled",
        **environment,
    ) as process:
        yield process


@pytest.mark.slow
def test_three_ways_of_serving_give_the_same_answers(
    served: Served, ray_local: None, tmp_path: Path
) -> None:
    expected = served.expected()
    recommend_all(served.bundle, tmp_path / "batch.parquet", requests=REQUESTS)
    rows = pq.read_table(tmp_path / "batch.parquet").to_pylist()
    for request, answer in zip(REQUESTS, expected, strict=True):
        mine = [row for row in rows if row["user_id"] == request["user_id"]]
        assert [row["item_id"] for row in mine] == answer["item_ids"]
        assert [row["score"] for row in mine] == answer["scores"]
        for name, shares in answer["shares"].items():
            assert [row[f"share_{name}"] for row in mine] == shares
        assert [row["boost"] for row in mine] == (answer.get("boosts") or [None] * len(mine))
        message = [
            None if row["explanation"] is None else json.loads(row["explanation"]) for row in mine
        ]
        assert message == (answer.get("explanations") or [None] * len(mine))
    port = free_port()
    with mlflow_server("models:/pocket@champion", tmp_path, port, uri=served.uri):
        url = f"http://127.0.0.1:{port}/invocations"
        found = post(url, {"dataframe_records": REQUESTS})["predictions"]
        assert [
            without_nulls(row, answer) for row, answer in zip(found, expected, strict=True)
        ] == expected
        for request, answer in zip(REQUESTS, expected, strict=True):
            assert_close(post(url, {"inputs": [request]})["predictions"][0], answer)
        for form in ("dataframe_records", "inputs", "instances"):
            assert "exclude_sen: unknown field" in refused(url, {form: [MISTYPED]}, 400)["message"]
        assert "user_id: got 7" in refused(url, {"inputs": [{"user_id": 7}]}, 400)["message"]
        [like] = post(url, {"dataframe_records": [SIMILAR]})["predictions"]
        assert f"request 0: {WRONG_RULE}" in refused(url, {"inputs": [BAD_RULE]}, 400)["message"]
    with pytest.raises(RequestError, match=WRONG_RULE):
        recommend_all(served.bundle, tmp_path / "refused.parquet", requests=[BAD_RULE])
    with pytest.raises(RequestError, match="exclude_sen: unknown field"):
        recommend_all(served.bundle, tmp_path / "refused.parquet", requests=[MISTYPED])
    port = free_port()
    stock = {"serve.stock_token_env": "STOCK", "serve.stock_file": str(tmp_path / "stock.json")}
    words = [word for key, value in stock.items() for word in (f"--{key}", value)]
    with ray_server(served, tmp_path, port, *words, STOCK=TOKEN) as process:
        url = f"http://127.0.0.1:{port}"
        assert post(f"{url}/recommend", REQUESTS) == expected
        found = post(f"{url}/similar", SIMILAR)
        assert found == {name: value for name, value in like.items() if value is not None}
        assert refused(f"{url}/recommend", BAD_RULE, 400)["error"].startswith(WRONG_RULE)
        assert refused(f"{url}/stock", {"out": ["i3"]}, 401)
        changed = post(f"{url}/stock", {"out": ["i3", "gone"]}, Authorization=f"Bearer {TOKEN}")
        assert (changed["out"], changed["revision"], changed["unknown"]) == (2, 1, 1)
        assert "i3" not in post(f"{url}/recommend", {"user_id": "nobody", "k": 100})["item_ids"]
        assert get(f"{url}/model")["stock"]["out"] == 2
        assert json.loads((tmp_path / "stock.json").read_text())["out"] == ["gone", "i3"]
        post(f"{url}/stock", {"remove": ["i3", "gone"]}, Authorization=f"Bearer {TOKEN}")
        assert (
            post(f"{url}/invocations", {"dataframe_records": REQUESTS})["predictions"] == expected
        )
        for request, answer in zip(REQUESTS, expected, strict=True):
            assert_close(post(f"{url}/recommend", request), answer)
        assert (get(f"{url}/model")["name"], get(f"{url}/model")["alias"]) == ("pocket", "champion")
        assert "user_id: got 7" in refused(f"{url}/recommend", {"user_id": 7}, 400)["error"]
        assert "exclude_sen: unknown field" in refused(f"{url}/recommend", MISTYPED, 400)["error"]
        for form in ("dataframe_records", "inputs", "instances"):
            assert (
                "exclude_sen: unknown field"
                in refused(f"{url}/invocations", {form: [MISTYPED]}, 400)["message"]
            )
        described = get(f"{url}/openapi.json")["components"]["schemas"]["Filters"]
        assert list(described["properties"]) == ["kind", "price"]
        with urllib.request.urlopen(f"{url}/docs", timeout=120) as page:
            assert b"schema-Filters" in page.read()
        children = _below(process.pid)
        assert len(children) > 3
        process.send_signal(signal.SIGINT)
        assert process.wait(200) == 0
    deadline = time.monotonic() + 120
    while (left := [pid for pid in children if _runs(pid)]) and time.monotonic() < deadline:
        time.sleep(0.3)
    assert left == [], "no process stays"


def _below(pid: int) -> list[int]:
    """The processes of the server's session, and all their descendants."""
    found, todo = [], [pid]
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(path.parent.name))
    while todo:
        below = parents.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_server_reloads_when_alias_moves_and_no_call_fails(tmp_path: Path) -> None:
    """Two replicas under constant traffic; a version with damaged files changes only the log."""
    served = Served(tmp_path)
    port, failed, versions = free_port(), [], []
    url = f"http://127.0.0.1:{port}/recommend"
    more = ["--serve.replicas", "2", "--serve.poll_seconds", "0.5", "--serve.batch_wait_ms", "5"]
    log = tmp_path / f"serve-{port}.log"
    asked = json.dumps(REQUESTS[0]).encode()
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            try:
                request = urllib.request.Request(url, asked, {"Content-Type": "application/json"})
                with urllib.request.urlopen(request, timeout=120) as reply:
                    versions.append(
                        (
                            reply.headers["X-Model-Version"],
                            tuple(json.loads(reply.read())["item_ids"]),
                        )
                    )
            except Exception as error:
                failed.append(repr(error))

    def wait_for(text: str) -> None:
        for _ in range(2000):
            if text in log.read_text():
                return
            time.sleep(0.2)
        raise AssertionError(log.read_text())

    with ray_server(served, tmp_path, port, *more) as process:
        threads = [threading.Thread(target=ask) for _ in range(3)]
        [thread.start() for thread in threads]
        try:
            before = served.expected()
            served.add(1)
            wait_for("models:/pocket/2 now answers on 2 replica(s)")
            after = served.expected()
            time.sleep(1)
            registry = client(served.uri)
            source = registry.get_model_version("pocket", "1")
            broken = registry.create_model_version(
                "pocket", source=str(tmp_path / "nothing"), run_id=source.run_id
            )
            registry.set_registered_model_alias("pocket", "champion", broken.version)
            wait_for("models:/pocket/3 cannot be loaded")
            time.sleep(1)
        finally:
            done.set()
            [thread.join() for thread in threads]
        assert failed == []
        assert {version for version, _ in versions} == {"1", "2"} and versions[-1][0] == "2"
        lists = {"1": tuple(before[0]["item_ids"]), "2": tuple(after[0]["item_ids"])}
        assert lists["1"] != lists["2"] and all(
            items == lists[version] for version, items in versions
        )
        for _ in range(600):  # a replica reports its counts to the model holder twice a second
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as reply:
                text = reply.read().decode()
            total = next(
                line for line in text.splitlines() if 'path="/recommend",status="200"' in line
            )
            if int(total.split()[-1]) == len(versions):
                break
            time.sleep(0.2)
        assert int(total.split()[-1]) == len(versions), "counts of both replicas, none lost"
        assert "recsys_swaps_total 2" in text and "recsys_replicas 2" in text
        process.send_signal(signal.SIGTERM)
        assert process.wait(200) == 0


@pytest.mark.slow
def test_server_under_load_stays_reachable_and_stops_without_losing_a_call(
    served: Served, tmp_path: Path
) -> None:
    """Half-sent bodies and large calls together with small ones; then SIGTERM while clients send
    calls.
    """
    port = free_port()
    address, url = ("127.0.0.1", port), f"http://127.0.0.1:{port}"
    outcomes: Counter[str] = Counter()
    with ray_server(
        served, tmp_path, port, "--serve.body_timeout_s", "60", "--serve.drain_s", "2"
    ) as process:
        half = [socket.create_connection(address, timeout=30) for _ in range(130)]
        for connection in half:
            connection.sendall(
                b"POST /recommend HTTP/1.1\r\nHost: here\r\nContent-Length: 900\r\n\r\n{"
            )
        for _ in range(5):
            assert (
                get(f"{url}/health")["ready"]
                and post(f"{url}/recommend", REQUESTS[0], 30)["item_ids"]
            )
        large = [
            {"user_id": f"u{row % 6}", "history": [f"i{row % 12}"] * 20, "k": 100}
            for row in range(1000)
        ]
        found = post(f"{url}/recommend", large, 120)
        assert len(found) == 1000, "read in a process of its own, and answered in slices"
        wrong = refused(f"{url}/recommend", [*large[:999], {"user_id": 7}], 400)["error"]
        assert wrong.startswith("request 999: user_id: got 7")
        assert (
            "serve.max_answers"
            in refused(f"{url}/recommend", [{**row, "k": 101} for row in large], 413)["error"]
        )
        with urllib.request.urlopen(f"{url}/metrics", timeout=30) as reply:
            assert 'path="/health",status="200"' in reply.read().decode()

        def ask() -> None:
            while True:
                try:
                    post(f"{url}/recommend", REQUESTS[0])
                    outcomes["200"] += 1
                except urllib.error.HTTPError as error:
                    outcomes[str(error.code)] += 1
                    error.close()
                except urllib.error.URLError as error:
                    if isinstance(error.reason, ConnectionRefusedError):
                        return  # it has ended
                    outcomes[repr(error.reason)] += 1
                except OSError as error:
                    outcomes[repr(error)] += 1

        threads = [threading.Thread(target=ask) for _ in range(4)]
        [thread.start() for thread in threads]
        time.sleep(2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
        [thread.join() for thread in threads]
        [connection.close() for connection in half]
    assert set(outcomes) == {"200", "503"}, outcomes


@pytest.mark.slow
@pytest.mark.timeout(1800)  # most of it is the download of torch
def test_model_answers_with_only_its_own_requirements(served: Served, tmp_path: Path) -> None:
    """A fresh environment with only the packages of the model's requirements.txt."""
    import mlflow

    with active_uris(served.uri):
        model = Path(
            mlflow.artifacts.download_artifacts(
                "models:/pocket@champion", dst_path=str(tmp_path / "model")
            )
        )
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    words = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*words, "-r", str(model / "requirements.txt")], check=True, timeout=900)
    installed = subprocess.run(
        [str(python), "-m", "pip", "list"], check=True, capture_output=True, text=True
    ).stdout
    for heavy in (
        "ray ",
        "transformers",
        "torch-geometric",
        "torch_geometric",
        "polars",
        "implicit",
    ):
        assert heavy not in installed
    port = free_port()
    with mlflow_server(str(model), tmp_path, port, python):
        found = post(f"http://127.0.0.1:{port}/invocations", {"dataframe_records": REQUESTS})
        answers = [  # MLflow sends null for fields that only some answers have
            {name: value for name, value in row.items() if value is not None}
            for row in found["predictions"]
        ]
        assert answers == served.expected()


@pytest.mark.slow
def test_stock_reply_waits_until_both_replicas_have_the_change(tmp_path: Path) -> None:
    """Ten changes, each followed at once by calls that reach either replica."""
    served, port = Served(tmp_path), free_port()
    url, out = f"http://127.0.0.1:{port}", {"out": ["i3"]}
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    with ray_server(
        served,
        tmp_path,
        port,
        "--serve.replicas",
        "2",
        "--serve.stock_token_env",
        "STOCK",
        STOCK=TOKEN,
    ):
        for number in range(10):
            change = out if number % 2 == 0 else {"out": []}
            started = time.monotonic()
            assert post(f"{url}/stock", change, **bearer)["everywhere"] is True
            assert time.monotonic() - started < 3
            found = {
                "i3" in post(f"{url}/recommend", {"user_id": "nobody", "k": 100})["item_ids"]
                for _ in range(20)
            }
            assert found == {change != out}


@pytest.mark.slow
@pytest.mark.parametrize("keeps_file", [True, False])
def test_model_holder_that_is_killed_is_replaced_with_stock_and_models(
    tmp_path: Path, keeps_file: bool
) -> None:
    served, port = Served(tmp_path), free_port()
    url, bearer = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {TOKEN}"}
    more = ["--serve.poll_seconds", "0.5", "--serve.stock_token_env", "STOCK"]
    more += ["--serve.stock_file", str(tmp_path / "stock.json")] if keeps_file else []
    log = tmp_path / f"serve-{port}.log"

    def wait_for(text: str) -> None:
        until = time.monotonic() + 300
        while text not in log.read_text():
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)

    def listed() -> list[str]:
        return list(post(f"{url}/recommend", {"user_id": "nobody", "k": 100})["item_ids"])

    with ray_server(served, tmp_path, port, *more, STOCK=TOKEN) as process:
        assert post(f"{url}/stock", {"out": ["i3"]}, **bearer)["revision"] == 1
        [holder] = [
            pid
            for pid in _below(process.pid)
            if b"ModelHolder" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        os.kill(holder, signal.SIGKILL)
        wait_for("the process that holds the models had ended; a new one replaces it")
        until = time.monotonic() + 100
        while True:  # refused with 503 while the process starts
            with suppress(urllib.error.HTTPError):
                found = post(f"{url}/stock", {"add": ["i4"]}, **bearer)
                break
            assert time.monotonic() < until
            time.sleep(0.2)
        assert found["revision"] == 2 and found["out"] == 2 and not {"i3", "i4"} & {*listed()}
        served.add(1)
        wait_for("models:/pocket/2 now answers on 1 replica(s)")
        assert listed() and not {"i3", "i4"} & {*listed()}
        assert log.read_text().count("had ended") == 1


def test_stock_is_everywhere_when_every_running_replica_has_the_revision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    holder = ModelHolder()
    holder.report("one", {"a": 1}, {}, {}, 1)
    holder.report("two", {"a": 1}, {}, {}, 0)
    assert holder.has_everywhere(0) and not holder.has_everywhere(1)
    holder.report("two", {"a": 1}, {}, {}, 2)
    assert holder.has_everywhere(1) and not holder.has_everywhere(2)
    monkeypatch.setattr(model_holder, "_SILENT_S", -1.0)
    assert holder.has_everywhere(3), "both have gone"
