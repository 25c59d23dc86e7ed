"""The dashboard shows runs, comparisons, answers and the gate. It changes nothing, and refuses
requests from other sites and other host names.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import yaml
from test_compare import finished

from pipelines.cli import main
from pipelines.plumbing.run_folder import open_run
from pipelines.plumbing.run_tracking import tracked
from pipelines.ui import application_of
from recsys.config import Config, build_config
from recsys.registry.mlflow_client import client
from recsys.registry.run_tags import PARENT_TAG, PROCESS_TAG
from recsys.serving.bundles import read_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_requests
from recsys.storage.locks import this_process
from recsys.ui.comparisons import Comparison, Comparisons
from recsys.ui.gate import Gate, _registered_models
from recsys.ui.loaded_models import Choice, LoadedModel, LoadedModels
from recsys.ui.runs import Run, Runs, _newest_runs
from tests.ruled import World

pytest.importorskip("fastapi")
from starlette.testclient import TestClient  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
Captured = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
ATTACK = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """Two runs that were trained and evaluated, and one with the bundle of a catalogue with
    titles.
    """
    folder = tmp_path_factory.mktemp("ui")
    runs = folder / "runs"
    finished(runs, "good")
    finished(runs, "bad", train__epochs=1, train__lr=1e-6)
    for name in ("good.yaml", "bad.yaml"):
        (runs / name).unlink()
    world = World(folder / "world", 60, 30)
    (runs / "shop").mkdir()
    (runs / "shop/config.yaml").write_text("run: {dir: shop}\n")
    shutil.copytree(world.folder, runs / "shop/bundle")
    return runs


def config_of(runs: Path, **ui: Any) -> Config:
    store = f"sqlite:///{runs / 'mlflow.db'}"
    return build_config({"ui": {"runs": [str(runs)], **ui}, "tracking": {"uri": store}})


@pytest.fixture(scope="module")
def browser(runs: Path) -> Iterator[TestClient]:
    """A browser that follows no redirects, at localhost."""
    config = config_of(runs)
    with TestClient(
        application_of(config.ui, config.tracking),
        base_url="http://localhost:8080",
        follow_redirects=False,
        raise_server_exceptions=False,
    ) as client:
        yield client


@pytest.fixture(scope="module")
def recommender(runs: Path) -> Recommender:
    return Recommender(read_bundle(runs / "shop/bundle"))


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def listed(html: str) -> list[str]:
    """Ids of the items of a list, in order."""
    return re.findall(r'<span class="title"><a href="[^"]*" title="([^"]*)"', html)


def test_runs_are_listed_with_metric_and_verdict(browser: TestClient, runs: Path) -> None:
    page = browser.get("/")
    value = json.loads((runs / "good/metrics.json").read_text())["model"]["ndcg@5"]
    assert page.status_code == 200
    assert all(f'href="/runs/{name}"' in page.text for name in ("good", "bad", "shop"))
    assert f"{value:.4f}" in page.text and "NDCG@5" in page.text
    assert page.text.count('name="run"') == 2, "a run without figures cannot be compared"


def test_page_of_a_run_holds_its_figures_and_opens_its_report(
    browser: TestClient, runs: Path
) -> None:
    metrics = json.loads((runs / "good/metrics.json").read_text())
    page = browser.get("/runs/good").text
    for values in (metrics["model"], *metrics["baselines"].values()):
        assert f"{values['ndcg@5']:.4f}" in page
    report = browser.get("/reports/report/good")
    assert report.text == (runs / "good/report.html").read_text(encoding="utf-8")
    assert "sandbox" in report.headers["content-security-policy"]


def test_comparison_equals_the_command_and_writes_nothing(
    browser: TestClient, runs: Path, tmp_path: Path, capsys: Captured
) -> None:
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()}
    page, until = browser.get("/compare?run=good&run=bad"), time.monotonic() + 300
    while "Ranking the test split" in page.text and time.monotonic() < until:
        time.sleep(0.2)
        page = browser.get("/compare?first=good&second=bad")
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()} == before
    out = tmp_path / "compare.json"
    assert main(["compare", str(runs / "good"), str(runs / "bad"), "--compare.out", str(out)]) == 0
    entry = json.loads(out.read_text())["metrics"]["ndcg@5"]
    assert "good is significantly better" in page.text
    assert f"{entry['first']:.4f}" in page.text and f"{entry['difference']:+.4f}" in page.text
    assert "train.epochs" in page.text


def test_stored_comparison_of_the_same_models_is_shown_at_once(
    browser: TestClient, runs: Path
) -> None:
    reported = [json.loads((runs / name / "metrics.json").read_text()) for name in ("bad", "good")]
    entry = {
        "first": 0.1,
        "second": 0.4321,
        "difference": -0.3321,
        "low": -0.4,
        "high": -0.2,
        "p": 0.001,
    }
    record = {
        "first": reported[0],
        "second": reported[1],
        "metric": "ndcg@5",
    }
    stored = runs / "bad/compare.json"
    stored.write_text(
        json.dumps(
            {**record, "metrics": {"ndcg@5": entry}, "queries": 72, "settings": {}, "notes": []}
        )
    )
    try:
        page = browser.get("/compare?first=bad&second=good").text
        assert "0.4321" in page and "good is significantly better" in page
    finally:
        stored.unlink()


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("first=good&second=good", "same run"),
        ("first=good&second=shop", "recsys evaluate"),
        ("run=a&run=b&run=c", "3 runs"),
    ],
)
def test_runs_that_cannot_be_compared_give_a_message(
    browser: TestClient, query: str, said: str
) -> None:
    page = browser.get(f"/compare?{query}")
    assert page.status_code == 422 and said in text_of(page.text)


def test_list_of_a_user_equals_the_model_and_shares_sum_to_scores(
    browser: TestClient, recommender: Recommender
) -> None:
    page = browser.get("/try?model=run:shop&user=u3&k=5").text
    at = "2000-01-01" if not recommender.newest else recommender.newest
    [answer] = recommender.recommend(parse_requests([{"user_id": "u3", "k": 5, "at": at}]))
    assert listed(page) == answer.item_ids and len(answer.item_ids) == 5
    assert all(title in page for title in answer.titles), "titles, not ids"
    rows = re.findall(r'<tr><th scope="row">Title of [^<]*</th>(.*?)</tr>', page)
    assert len(rows) == 5
    for row, score in zip(rows, answer.scores, strict=True):
        *shares, reported = (
            float(cell.replace("−", "-")) for cell in re.findall(r"<td>([^<]*)</td>", row)
        )
        assert reported == pytest.approx(score, abs=1e-3) and sum(shares) == pytest.approx(
            score, abs=1e-2
        )
    assert page.count("<rect") >= 5 * len(recommender.names) and 'role="img" aria-label="' in page


def test_list_of_a_basket_equals_the_model(browser: TestClient, recommender: Recommender) -> None:
    page = browser.get("/try?model=run:shop&item=i1&item=i2&k=5").text
    [answer] = recommender.recommend(parse_requests([{"history": ["i1", "i2"], "k": 5}]))
    assert listed(page) == answer.item_ids
    assert "Remove Title of i1 from the basket" in page


def test_unknown_user_and_items_give_a_plain_message(browser: TestClient) -> None:
    page = browser.get("/try?model=run:shop&user=nobody-here")
    assert page.status_code == 200 and "does not know the user “nobody-here”" in page.text
    assert "most popular items" in page.text and len(listed(page.text)) == 10
    page = browser.get("/try?model=run:shop&item=no-such-item&item=i1")
    assert "does not know these items and ignores them: no-such-item" in page.text
    page = browser.get("/similar?model=run:shop&item=no-such-item")
    assert page.status_code == 422 and "does not know the item “no-such-item”" in page.text


def test_explanations_are_shown_on_request(browser: TestClient) -> None:
    assert "mainly because" not in browser.get("/try?model=run:shop&user=u3").text
    assert (
        browser.get("/try?model=run:shop&user=u3&k=3&explain=true").text.count('class="why"') == 3
    )


def test_items_are_found_by_title_and_id(browser: TestClient) -> None:
    page = browser.get("/try?model=run:shop&find=TITLE of i1").text
    found = re.findall(r'<a href="/try\?[^"]*item=(i\d+)', page)
    assert found[0] == "i1" and len(found) == 8 and all(item.startswith("i1") for item in found)
    assert "No item has “zebra”" in browser.get("/try?model=run:shop&find=zebra").text


def test_similar_items_equal_the_model(browser: TestClient, recommender: Recommender) -> None:
    from recsys.serving.request_parsing import parse_similar

    for by in ("vectors", "use", "text"):
        page = browser.get(f"/similar?model=run:shop&item=i3&by={by}&k=5").text
        [answer] = recommender.similar.answer(parse_similar([{"item_id": "i3", "k": 5, "by": by}]))
        assert listed(page) == answer.item_ids


def test_picked_user_is_a_known_one(browser: TestClient, recommender: Recommender) -> None:
    answer = browser.get("/try?model=run:shop&pick=true")
    user = re.search(r"user=(\w+)", answer.headers["location"])
    assert answer.status_code == 303 and user and recommender.user_row(user[1]) >= 0


def test_one_model_is_loaded_once_under_all_its_names(runs: Path) -> None:
    bundle = str((runs / "shop/bundle").resolve())
    loaded = LoadedModels(Runs([str(runs)], ""), Gate(""), bundle)
    named, of_run = loaded.open("named"), loaded.open("run:shop")
    assert (named.choice.key, of_run.choice.key) == ("named", "run:shop")
    assert named.recommender is of_run.recommender


@pytest.mark.parametrize("is_retrained", [False, True])
def test_run_and_its_registered_version_are_one_choice_while_the_weights_are_equal(
    runs: Path, tmp_path: Path, is_retrained: bool
) -> None:
    config = config_of(tmp_path)
    registry = client(config.tracking.uri, writes=True)
    run_id = registry.create_run(registry.create_experiment("first")).info.run_id
    mine = tmp_path / "mine"
    shutil.copytree(runs / "shop", mine)
    (mine / "tracking.json").write_text(json.dumps({"run_id": run_id}))
    files = json.loads((mine / "bundle/bundle.json").read_text())["files"]
    weights = "other" if is_retrained else files["weights.safetensors"]["sha256"]
    registry.create_registered_model("shop")
    registry.create_model_version(
        "shop", source=str(mine), run_id=run_id, tags={"weights.sha256": weights}
    )
    loaded = LoadedModels(Runs([str(tmp_path)], ""), Gate(config.tracking.uri))
    labels = [choice.label for choice in loaded.choices()]
    if is_retrained:
        assert labels == ["shop v1", "run mine"]
    else:
        assert labels == ["shop v1 · run mine"]
    assert loaded.open("run:mine").choice.label == labels[-1], "links of the run still work"


def test_dropped_granularities_are_not_listed_as_part_of_the_model(
    runs: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs / "good", tmp_path / "good")
    path = tmp_path / "good/metrics.json"
    metrics = json.loads(path.read_text())
    [first, *_] = metrics["granularities"]
    metrics["granularities"]["place"] = metrics["granularities"][first]
    metrics["members"] = {"each": {first: {"kept": True}, "place": {"kept": False}}}
    path.write_text(json.dumps(metrics))
    config = config_of(tmp_path)
    pages = TestClient(application_of(config.ui, config.tracking), base_url="http://localhost")
    listed_runs, page = text_of(pages.get("/").text), text_of(pages.get("/runs/good").text)
    assert first in listed_runs and "place" not in listed_runs
    assert page.count("place") == 1 and "Dropped, so not part of the model: place." in page


@pytest.fixture(scope="module")
def gated(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    """A registry with a champion and a version that the gate refused."""
    folder = tmp_path_factory.mktemp("gated")
    config = config_of(folder)
    registry = client(config.tracking.uri, writes=True)
    registry.create_registered_model("shop")
    tags: list[dict[str, str]] = [
        {
            "metric.ndcg_at_20": "0.25",
            "metric.hit_at_5": "0.5",
            "main_metric": "hit@5",
            "granularities": "als, place",
            "members": "als",
            "promotion.decision": "promoted",
            "promotion.against": "none",
        },
        {
            "promotion.decision": "refused",
            "promotion.against": "1",
            "promotion.reasons": f"worse for {ATTACK}",
        },
    ]
    for one in tags:
        registry.create_model_version("shop", source=str(runs / "shop/bundle"), tags=one)
    registry.set_registered_model_alias("shop", "champion", "1")
    run = registry.create_run(registry.create_experiment("first"), run_name=ATTACK)
    registry.set_terminated(run.info.run_id)
    registry.create_run(registry.create_experiment("first-promotions"), run_name="promote shop 2")
    return TestClient(application_of(config.ui, config.tracking), base_url="http://localhost")


def test_gate_shows_champion_decisions_and_reasons(gated: TestClient) -> None:
    page = text_of(gated.get("/models").text)
    assert "champion: version 1" in page and "Hit@5 0.5000 · NDCG@20 0.2500" in page
    assert "als" in page and "place" not in page, "dropped"
    assert re.search(r"Version 2 .* refused .* worse for .* Version 1 .* promoted", page)


def test_runs_of_mlflow_without_folder_are_listed_and_promotions_are_not(gated: TestClient) -> None:
    page = gated.get("/").text
    assert "&lt;script&gt;" in page and ATTACK not in page
    assert "promote shop 2" not in page


def test_texts_of_users_are_escaped(browser: TestClient, gated: TestClient) -> None:
    pages = [
        gated.get("/models"),
        browser.get(f"/try?model=run:shop&user={quote(ATTACK)}&find={quote(ATTACK)}"),
    ]
    pages += [browser.get(f"/runs/{quote(ATTACK)}"), browser.get(f"/try?model={quote(ATTACK)}")]
    for page in pages:
        assert ATTACK not in page.text and "&lt;script&gt;" in page.text


def test_card_is_markdown_and_its_html_is_escaped(runs: Path) -> None:
    from recsys.ui.app import Pages

    found, gate = Runs([str(runs)], ""), Gate("")
    pages = Pages(found, gate, LoadedModels(found, gate), Comparisons(lambda first, second: {}))
    card = (
        f"# Card\n\n|a|b|\n|-|-|\n|1|{ATTACK}|\n\n[x](javascript:alert(1)) ![p](http://there/x.png)"
    )
    opened = LoadedModel(
        Choice("a", "a", "a"), "a", Recommender(read_bundle(runs / "shop/bundle")), {"card": card}
    )
    html = pages.card(opened)
    assert "<h1>Card</h1>" in html and "<td>1</td>" in html
    assert "<script" not in html and 'href="javascript' not in html and "<img" not in html


@pytest.fixture(scope="module")
def ended() -> int:
    """The id of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_killed_run_is_stopped_and_living_one_is_running(tmp_path: Path, ended: int) -> None:
    for name, pid, verb in (
        ("killed", ended, "run"),
        ("living", os.getpid(), "run"),
        ("prepared", ended, "prepare"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("run: {dir: x}\n")
        (tmp_path / name / "history.jsonl").write_text(json.dumps({"verb": verb}) + "\n")
        (tmp_path / name / ".lock").write_text(
            f"`recsys {verb}`, process {pid} on {socket.gethostname()}, since 2026-01-01"
        )
    statuses = {run.name: run.status for run in Runs([str(tmp_path)], "").all()}
    assert statuses == {"killed": "stopped", "living": "running", "prepared": "not evaluated"}


def test_run_of_mlflow_without_its_process_is_stopped_and_a_search_is_part_of_its_run(
    tmp_path: Path, ended: int
) -> None:
    config = build_config({"run": {"dir": str(tmp_path / "run"), "name": "mine"}})
    _, _, machine = this_process().partition(" ")
    with open_run(config, "run", io.StringIO()) as folder:
        with tracked(config, folder, fresh=True) as search:
            folder.search_run = search.run_id
        with tracked(config, folder, fresh=True) as tracker:
            runs = Runs([], tracker.uri).all()
            assert [(run.run_id, run.status) for run in runs] == [(tracker.run_id, "running")]
            tracker.client.set_tag(tracker.run_id, PROCESS_TAG, f"{ended} {machine}")
            assert [run.status for run in Runs([], tracker.uri).all()] == ["stopped"]
            tracker.client.set_tag(tracker.run_id, PROCESS_TAG, f"{ended} another machine")
            assert [run.status for run in Runs([], tracker.uri).all()] == ["running"]


def test_trials_and_many_models_hide_no_run_and_no_model(tmp_path: Path) -> None:
    store = SimpleNamespace(
        search_experiments=_pages([SimpleNamespace(experiment_id="1", name="shop")]),
        search_runs=_pages([*[_logged({PARENT_TAG: "sweep"})] * 250, *[_logged({})] * 250]),
        search_registered_models=_pages([SimpleNamespace(name=str(n)) for n in range(150)]),
    )
    assert [run.data.tags for run in _newest_runs(store)] == [{}] * 200
    assert [model.name for model in _registered_models(store)] == [str(n) for n in range(150)]


def _logged(tags: dict[str, str]) -> SimpleNamespace:
    return SimpleNamespace(data=SimpleNamespace(tags=tags))


class _Page(list[Any]):
    token: str | None = None


def _pages(results: list[Any]) -> Callable[..., _Page]:
    """A search with pages of at most 100 results, as in MLflow's client."""

    def search(*_: Any, page_token: str = "0", max_results: int = 100, **__: Any) -> _Page:
        start, end = int(page_token), int(page_token) + min(max_results, 100)
        page = _Page(results[start:end])
        page.token = str(end) if end < len(results) else None
        return page

    return search


def test_long_name_of_a_model_is_shown_whole(runs: Path) -> None:
    name = str(runs / "shop/bundle")
    config = config_of(runs, model=name)
    browser = TestClient(application_of(config.ui, config.tracking), base_url="http://localhost")
    for path in ("/try", "/similar"):
        page = browser.get(path).text
        assert f'whole">{name}</p>' in page and 'whole">run shop' not in page


def test_empty_folder_gives_instructions(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with TestClient(
        application_of(config.ui, config.tracking), base_url="http://localhost"
    ) as browser:
        for path, said in [
            ("/", "recsys run --config demo"),
            ("/compare", "needs two finished run folders"),
            ("/try", "No model yet"),
            ("/similar", "No model yet"),
            ("/models", "Nothing is registered yet"),
        ]:
            page = browser.get(path)
            assert page.status_code == 200 and said in text_of(page.text), path
    assert not list(tmp_path.iterdir()), "to look makes no store"


def test_damaged_files_are_skipped_without_failure(tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half/config.yaml").write_text("{}")
    (tmp_path / "half/metrics.json").write_text('{"metric": "ndcg@5", "model"')
    (tmp_path / "mlflow.db").write_text(
        "this is no SQLite file, and longer than one hundred bytes " * 3
    )
    config = config_of(tmp_path)
    with TestClient(
        application_of(config.ui, config.tracking), base_url="http://localhost"
    ) as browser:
        page = browser.get("/")
        assert (
            page.status_code == 200
            and "not evaluated" in page.text
            and "MLflow&#39;s runs are not shown" in page.text
        )
        assert browser.get("/runs/half").status_code == 200


EVALUATED = {
    "metric": "ndcg@5",
    "model": {"ndcg@5": 0.1},
    "confidence": {"model": {"ndcg@5": [0.05, 0.2]}},
    "data": {"queries": 3, "items": 4},
    "granularities": {"als": {"weight": 1.0, "ndcg@5_without": 0.0}},
}


def opened(folder: Path) -> TestClient:
    config = config_of(folder)
    return TestClient(
        application_of(config.ui, config.tracking),
        base_url="http://localhost",
        raise_server_exceptions=False,
    )


def evaluated(folder: Path, **changed: Any) -> Path:
    """A run folder with small metrics and an empty model."""
    (folder / "model").mkdir(parents=True)
    (folder / "model/model.safetensors").write_text("")
    (folder / "config.yaml").write_text("{}")
    (folder / "metrics.json").write_text(
        json.dumps({**EVALUATED, "model_sha256": folder.name, **changed})
    )
    return folder


@pytest.mark.parametrize(
    "content",
    [
        {"model": "resnet50", "data": "imagenet", "accuracy": 0.91},
        {"model": [1]},
        {**EVALUATED, "model": {"ndcg@5": "0.9"}},
        {**EVALUATED, "data": "imagenet"},
        {**EVALUATED, "members": [1, 2]},
        {**EVALUATED, "confidence": {"model": {"ndcg@5": [0.1]}}},
        {**EVALUATED, "granularities": {"als": 1}},
        {**EVALUATED, "baselines": {"ease": 1}},
        {name: value for name, value in EVALUATED.items() if name != "data"},
        ["deep"],
    ],
)
def test_metrics_of_another_tool_are_no_evaluation(tmp_path: Path, content: Any) -> None:
    text = "[" * 200_000 if content == ["deep"] else json.dumps(content)
    for name in ("theirs", "ours"):
        evaluated(tmp_path / name)
    (tmp_path / "theirs/metrics.json").write_text(text)
    with opened(tmp_path) as browser:
        page = browser.get("/")
        assert page.status_code == 200 and "0.1000" in page.text and "not evaluated" in page.text
        assert "no readable metrics.json" in text_of(browser.get("/runs/theirs").text)
        assert "test users" in browser.get("/runs/ours").text


def test_other_files_of_a_run_folder_cannot_stop_a_page(tmp_path: Path) -> None:
    for name in ("a", "b"):
        evaluated(tmp_path / name)
    (tmp_path / "a/promotion.json").write_text('{"a": 1}')
    (tmp_path / "a/compare.json").write_text('{"first": "a", "second": "b"}')
    (tmp_path / "a/bundle").mkdir()
    (tmp_path / "a/bundle/bundle.json").write_text('{"files": [1]}')
    (tmp_path / "a/report.html").write_bytes(b"<p>\xff\xfe</p>")
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/r\xff"))
    evaluated(odd)
    with opened(tmp_path) as browser:
        assert browser.get("/").status_code == 200
        for path in ("/runs/a", "/runs/r%EF%BF%BD", "/try", "/compare?first=a&second=b"):
            assert browser.get(path).status_code in (200, 404), path
        report = browser.get("/reports/report/a")
        assert report.status_code == 200 and report.content == b"<p>\xff\xfe</p>"


DIFFERENCE = {
    "first": 0.1,
    "second": 0.2,
    "difference": -0.1,
    "low": -0.2,
    "high": -0.05,
    "p": 0.01,
}
COMPARED = {
    "metric": "ndcg@5",
    "queries": 3,
    "metrics": {"ndcg@5": DIFFERENCE},
    "settings": {},
    "notes": [],
}


def compared(comparisons: Comparisons, runs: list[Run]) -> Comparison:
    """The comparison of the first two runs when it is there."""
    until = time.monotonic() + 30
    while not (found := comparisons.of(*runs)).is_made and time.monotonic() < until:
        time.sleep(0.01)
    return found


def test_comparison_that_failed_is_made_again_when_it_is_asked_for_again(tmp_path: Path) -> None:
    for name in ("a", "b"):
        evaluated(tmp_path / name)
    answers = iter([OSError("no space"), COMPARED])

    def compare(first: str, second: str) -> Any:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    comparisons, runs = Comparisons(compare), Runs([str(tmp_path)], "").all()
    assert "no space" in compared(comparisons, runs).problem
    assert compared(comparisons, runs) == compared(comparisons, runs) == Comparison(COMPARED)


def test_comparison_of_an_earlier_evaluation_is_made_again(tmp_path: Path) -> None:
    sides = [{"model_sha256": name, "settings_sha256": "old"} for name in ("a", "b")]
    for side in sides:
        evaluated(tmp_path / side["model_sha256"], **side)
    record = {**COMPARED, "first": sides[0], "second": sides[1]}
    (tmp_path / "a/compare.json").write_text(json.dumps(record))
    found = Runs([str(tmp_path)], "")
    made: list[str] = []
    comparisons = Comparisons(lambda first, second: made.append(first) or COMPARED)

    def of_both() -> Comparison:
        return compared(comparisons, [run for key in "ab" if (run := found.get(key))])

    assert of_both() == Comparison(record) and not made
    for count, settings in enumerate(("new", "newer"), 1):
        path = tmp_path / "a/metrics.json"
        path.write_text(json.dumps({**EVALUATED, **sides[0], "settings_sha256": settings}))
        assert of_both() == Comparison(COMPARED) and len(made) == count


@pytest.mark.parametrize("text", ["ΟΔΟΣ", "οδος", "οδοσ", "İstanbul", "istanbul", "STRASSE"])
def test_search_knows_the_cases_of_all_alphabets(text: str) -> None:
    titles = ["Ερμού ΟΔΟΣ", "İstanbul Hatırası", "Strasse"]
    bundle = SimpleNamespace(item_ids=["0", "1", "2"], titles=titles, popularity_N=np.ones(3))
    model: Any = SimpleNamespace(bundle=bundle)
    assert len(LoadedModel(Choice("a", "a", "a"), "a", model, {}).find(text)) == 1


def test_head_answers_as_get_without_content(tmp_path: Path) -> None:
    with opened(tmp_path) as browser:
        for path in ("/", "/static/ui.css", "/nothing"):
            head, get = browser.head(path), browser.get(path)
            assert head.status_code == get.status_code and head.content == b""
            assert head.headers["content-length"] == get.headers["content-length"]


@pytest.mark.parametrize(
    "path",
    [
        "/runs/../../etc/passwd",
        "/runs/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/reports/report/%2e%2e",
        "/static/..%2fapp.py",
        "/static/app.py",
        "/reports/..%2f..%2fmetrics.json/good",
        "/nothing",
        "/docs",
        "/openapi.json",
        "/runs//etc",
    ],
)
def test_no_address_leads_to_the_file_system(browser: TestClient, path: str) -> None:
    page = browser.get(path)
    assert page.status_code == 404 and "root:" not in page.text


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/try?k=1000", "k: input should be less than or equal to 50"),
        ("/similar?by=magic", "by: input should be"),
        ("/try?model=no/9", "there is no model 'no/9' here"),
    ],
)
def test_malformed_addresses_get_one_message(browser: TestClient, path: str, said: str) -> None:
    page = browser.get(path)
    assert page.status_code in (404, 422)
    assert said in text_of(page.text).replace("&#39;", "'")


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8080", "", "[::1"])
def test_unlisted_host_names_are_refused(browser: TestClient, host: str) -> None:
    assert browser.get("/", headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost:1234", "127.0.0.1:8080", "[::1]:8080", "10.1.2.3"])
def test_listed_host_names_and_addresses_are_answered(browser: TestClient, host: str) -> None:
    assert browser.get("/", headers={"Host": host}).status_code == 200


def test_methods_that_write_are_refused(browser: TestClient) -> None:
    assert {
        browser.request(method, "/").status_code for method in ("POST", "PUT", "DELETE", "PATCH")
    } == {405}


def test_other_sites_cannot_embed_or_fetch_pages(browser: TestClient) -> None:
    fetched = {
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "no-cors",
        "Sec-Fetch-Dest": "image",
    }
    assert browser.get("/compare?first=good&second=bad", headers=fetched).status_code == 403
    followed = {
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "document",
    }
    assert browser.get("/", headers=followed).status_code == 200


@pytest.mark.parametrize("path", ["/", "/nothing", "/static/ui.css", "/try?model=run:shop&user=u1"])
def test_every_answer_has_a_policy_without_inline_code(browser: TestClient, path: str) -> None:
    answer = browser.get(path)
    policy = answer.headers["content-security-policy"]
    assert (
        "script-src 'self'" in policy
        and "unsafe" not in policy
        and "frame-ancestors 'none'" in policy
    )
    assert (
        answer.headers["x-content-type-options"] == "nosniff"
        and answer.headers["referrer-policy"] == "no-referrer"
    )
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|\sstyle=|https?://", answer.text)


def test_token_is_required_where_one_is_configured(runs: Path) -> None:
    config = config_of(runs)
    with TestClient(
        application_of(config.ui, config.tracking, "0123456789abcdef"), base_url="http://localhost"
    ) as browser:
        refused = browser.get("/")
        assert refused.status_code == 401 and refused.headers["www-authenticate"].startswith(
            "Basic"
        )
        for password, status in [("0123456789abcdef", 200), ("0123456789abcdeX", 401), ("", 401)]:
            given = base64.b64encode(f"anyone:{password}".encode()).decode()
            assert (
                browser.get("/", headers={"Authorization": f"Basic {given}"}).status_code == status
            )
        assert browser.get("/", headers={"Authorization": "Basic %%%"}).status_code == 401


def test_open_host_without_token_is_refused(runs: Path, capsys: Captured) -> None:
    assert main(["ui", str(runs), "--host", "0.0.0.0"]) == 2
    assert "set ui.token_env" in capsys.readouterr().err


def test_missing_folder_and_taken_port_are_refused(
    runs: Path, tmp_path: Path, capsys: Captured
) -> None:
    import socket

    assert main(["ui", str(tmp_path / "nothing")]) == 2
    assert "is not a folder" in capsys.readouterr().err
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert main(["ui", str(tmp_path), "--port", str(other.getsockname()[1])]) == 2
    assert "choose another port" in capsys.readouterr().err


def test_missing_extra_is_named(
    runs: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "markdown_it", None)
    assert main(["ui", str(runs)]) == 2
    assert "pip install 'multigrain[ui]'" in capsys.readouterr().err


def test_dry_run_lists_what_would_be_shown(runs: Path, capsys: Captured) -> None:
    assert main(["ui", str(runs), "--port", "9999", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["ui"]["port"] == 9999
    assert f"run folders in {runs}" in shown and f"{runs}/mlflow.db" in shown


# -------------------------------------------------------------------------------- in a real browser

_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
def address(runs: Path) -> Iterator[str]:
    """Where ``recsys ui`` shows the runs, in a process of its own; it ends in order when it is
    interrupted.
    """
    command = [sys.executable, "-m", "pipelines.cli", "ui", str(runs), "--port", "0"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as server:
        assert server.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
        try:
            assert found
            yield found.group()
        finally:
            server.send_signal(signal.SIGINT)
            assert server.wait(60) == 0


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_browser_shows_search_list_and_comparison_without_reload(address: str) -> None:
    """The search runs while the user types; basket, list and comparison appear without a reload.
    The console has no error, and no page is too wide.
    """
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started, tempfile.TemporaryDirectory() as profile:
        context = started.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, args=_FLAGS, viewport={"width": 1280, "height": 900}
        )
        page, said, outside = context.new_page(), list[str](), list[str]()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on(
            "request",
            lambda request: (
                outside.append(request.url) if not request.url.startswith(address) else None
            ),
        )
        page.set_default_timeout(120_000)

        page.goto(f"{address}/try?model=run:shop")
        page.get_by_label("Basket").press_sequentially("title of i7")
        page.locator("#found").get_by_role("link", name="Title of i7 i7", exact=True).click()
        page.wait_for_url("**item=i7*")
        assert page.locator("#answer .items > li").count() == 10
        page.get_by_label("User id").fill("u3")
        page.get_by_role("button", name="Recommend").click()
        page.wait_for_url("**user=u3*")
        assert page.get_by_role("heading", name="For u3").is_visible()
        assert page.locator("#answer svg rect").count() > 10

        page.goto(address)
        page.get_by_label("Compare good").check()
        page.get_by_label("Compare bad").check()
        page.get_by_role("button", name="Compare selected runs").click()
        page.locator("#comparison .verdict").wait_for()
        assert "is significantly better" in page.locator(".verdict").inner_text()

        for width in (360, 1400):
            page.set_viewport_size({"width": width, "height": 800})
            for path in (
                "/",
                "/runs/good",
                "/compare?first=good&second=bad",
                "/try?model=run:shop&user=u3",
                "/models",
                "/similar?model=run:shop&item=i3",
                "/card?model=run:shop",
            ):
                page.goto(address + path)
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
                    path,
                    width,
                )
        context.close()
    assert not said and not outside


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_search_and_list_answer_without_scripts(address: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started, tempfile.TemporaryDirectory() as profile:
        context = started.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, args=_FLAGS, java_script_enabled=False
        )
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.goto(f"{address}/try?model=run:shop")
        page.get_by_label("Basket").fill("title of i7")
        page.get_by_role("button", name="Recommend").click()
        page.locator("#found").get_by_role("link", name="Title of i7 i7", exact=True).click()
        assert page.locator("#answer .items > li").count() == 10
        context.close()
