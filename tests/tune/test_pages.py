"""The pages of a sweep and of a search for weights in a real browser: nothing is wider than the
window, and what is wide scrolls in its own box.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.config import build_config
from tests.tune.test_tune import _run_trials
from tune.fusion_report import render_report
from tune.ledger import Ledger, Trial
from tune.plan import Plan
from tune.space import load_space
from tune.sweep_report import render_sweep

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
SPACE = """
train.lr: {loguniform: [1.0e-4, 0.1]}
train.weight_decay: {loguniform: [1.0e-5, 0.1]}
train.batch_size: [128, 256, 512, 1024, 2048, 4096, 8192]
train.history_mask_rate: {uniform: [0.0, 0.5], step: 0.05}
train.loss.kind: [full_softmax, sampled_softmax]
train.loss.label_smoothing: {uniform: [0.0, 0.2], step: 0.05}
train.loss.temperature: {loguniform: [0.3, 2.0]}
train.schedule: [constant, cosine]
model.granularities.evolution.cell: [attention, gru, lstm]
model.granularities.evolution.dropout: {uniform: [0.1, 0.6], step: 0.1}
model.granularities.evolution.input_dropout: {uniform: [0.1, 0.6], step: 0.1}
"""
LONG = "a_name_without_any_space_" * 6

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


def _sweep_page(folder: Path) -> Path:
    (folder / "space.yaml").write_text(SPACE, encoding="utf-8")
    tree: dict[str, Any] = {
        "run": {"name": LONG},
        "data": {"text": {"enabled": False}},
        "model": {"item": {"text": False}, "granularities": {"evolution": {"enabled": True}}},
        "train": {"metric": "ndcg@5", "threads": 1},
        "tune": {"trials": 12, "best": 1, "seeds": 2},
    }
    config = build_config(tree)
    plan = Plan(
        config, load_space([str(folder / "space.yaml")], config), Ledger(folder / "ledger.jsonl")
    )
    _run_trials(plan)
    for trial in plan.ledger.trials.values():
        (folder / "trials" / trial.name).mkdir(parents=True)
        np.save(folder / "trials" / trial.name / "valid.npy", np.full(50, trial.best, np.float32))
    plan.ledger.start(Trial(12, 0, 42, dict(plan.ledger.of(1)[0].params)))
    failed = plan.ledger.trials[(12, 0)]
    plan.ledger.end(failed, "failed", reason=f"out of memory in {LONG}", blame="user")
    render_sweep(folder / "sweep.html", plan, folder)
    return folder / "sweep.html"


def _fusion_page(folder: Path) -> Path:
    names = [f"granularity_number_{number}" for number in range(8)]
    shares = dict.fromkeys(names, 1 / len(names))
    setting = {"metric": 0.123456, "coverage": 0.5, "diversity": 0.7, "novelty": 9.25}
    given = {**setting, "weights": shares, "shares": shares}
    gain = {"difference": 0.00125, "low": -0.00025, "high": 0.00275}
    metrics = {"ndcg@20": 0.2, "recall@20": 0.4}
    measured = {"today": metrics, "picked": metrics}
    report = {
        "metric": "ndcg@20", "kind": "weighted", "changed": True, "why": "better on validation",
        "pick": "best", "today": given, "picked": given, "front": [given] * 30,
        "settings": [setting, {**setting, "metric": 0.1, "coverage": 0.9}],
        "gain": {"naive": gain, "cross_fitted": gain, "test": gain},
        "search": {"settings": 4000, "seconds": 12.5, "a_minute": 19200.0},
        "validation": {**measured, "cached_users": 12345, "largest_difference_from_cache": 0.0},
        "test": measured,
    }  # fmt: skip
    render_report(folder / "fusion.html", report, LONG)
    return folder / "fusion.html"


@pytest.mark.parametrize("made_by", [_sweep_page, _fusion_page])
@pytest.mark.parametrize("width", [1200, 800, 400])
def test_page_fits_the_window_and_wide_tables_scroll_in_their_own_box(
    tmp_path: Path, browser: Any, made_by: Any, width: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    try:
        page.goto(made_by(tmp_path).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        outside = page.evaluate(
            "[...document.querySelectorAll('main *')].filter(one => !one.closest('.scroll'))"
            ".filter(one => one.getBoundingClientRect().right > innerWidth)"
            ".map(one => one.outerHTML.slice(0, 80))"
        )
        assert outside == []
        wider = "one => one.scrollWidth > one.clientWidth"
        scrolls = page.evaluate(f"[...document.querySelectorAll('.scroll')].some({wider})")
        assert scrolls or width == 1200
    finally:
        page.close()


def test_names_of_the_axes_of_ten_settings_do_not_overlap(tmp_path: Path, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    try:
        page.goto(_sweep_page(tmp_path).as_uri())
        spans = page.evaluate(
            "[...document.querySelectorAll('.parallel .a b')].map(one => {"
            "const box = one.getBoundingClientRect(); return [box.left, box.right]})"
        )
        assert len(spans) == 12
        assert all(one[1] <= two[0] + 1 for one, two in zip(spans, spans[1:], strict=False))
    finally:
        page.close()
