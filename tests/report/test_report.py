"""The report: self-contained, complete, escaped, with a correct verdict."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from recsys.data.foresight import Foresight
from recsys.data.manifest import Manifest
from recsys.report.chart_geometry import axis, curves, stacked
from recsys.report.first_screen import for_whom, verdict
from recsys.report.report import render_report

KINDS = (
    "recall",
    "ndcg",
    "precision",
    "mrr",
    "map",
    "hit",
    "coverage",
    "novelty",
    "gini",
    "diversity",
)
BASE = {"recall": 0.27, "ndcg": 0.274, "precision": 0.135, "mrr": 0.47, "map": 0.15, "hit": 0.78}
BASE |= {"coverage": 0.21, "novelty": 9.1, "gini": 0.93, "diversity": 0.62}
SCALE = {"model": 1.08, "popularity": 0.35, "item_knn": 0.92, "ease": 1.0, "als": 0.97}
METRICS = ("Recall", "NDCG", "Precision", "MRR", "MAP", "Hit")
HOSTILE = "<script>alert(\"x\")</script> & 'friends'"


def evaluation_json() -> dict[str, Any]:
    def metrics(name: str) -> dict[str, float]:
        return {
            f"{kind}@{k}": BASE[kind] * SCALE[name] * (0.8 if k == 10 else 1.0)
            for k in (10, 20)
            for kind in KINDS
        }

    def spans(name: str) -> dict[str, list[float]]:
        return {
            m: [v * 0.97, v * 1.03]
            for m, v in metrics(name).items()
            if m.split("@")[0] not in ("coverage", "gini")
        }

    def segment(queries: int, model: float, best: float) -> dict[str, Any]:
        width = 0.5 / math.sqrt(queries)
        baselines = {n: {"ndcg@20": best * SCALE[n]} for n in SCALE if n != "model"}
        return {
            "queries": queries,
            "model": {"ndcg@20": model},
            "interval": [max(0.0, model - width), model + width],
            "baselines": baselines,
        }

    names = ["popularity", "item_knn", "ease", "als"]
    against = {
        name: {
            "difference": 0.296 - 0.274 * SCALE[name],
            "low": 0.29 - 0.274 * SCALE[name],
            "high": 0.302 - 0.274 * SCALE[name],
            "p": 2 / 1001,
            "validation": 0.18 * SCALE[name],
            "constants": {"l2": 100.0} if name == "ease" else {},
        }
        for name in names
    }
    new_items = {"queries": 212, "targets": 431, "share": 0.023, "model": {"ndcg@20": 0.041}}
    return {
        "metric": "ndcg@20",
        "model": metrics("model"),
        "baselines": {name: metrics(name) for name in names},
        "segments": {
            "history": {
                "1–4": segment(61, 0.12, 0.07),
                "5–9": segment(102, 0.19, 0.15),
                "10–19": segment(140, 0.24, 0.22),
                "20–49": segment(1570, 0.303, 0.28),
            },
            "friends": {
                "with friends": segment(1490, 0.301, 0.276),
                "without friends": segment(391, 0.27, 0.265),
            },
            "items": {
                "targets new to training": {
                    **new_items,
                    "baselines": {n: {"ndcg@20": 0.0} for n in names},
                }
            },
        },
        "confidence": {
            "level": 0.95,
            "resamples": 1000,
            "model": spans("model"),
            "baselines": {name: spans(name) for name in names},
        },
        "comparison": {
            "metric": "ndcg@20",
            "best_baseline": "ease",
            "chosen_by": "validation ndcg@20",
            "against": against,
        },
        "timing": {
            "prepare_s": 48.2,
            "train_s": 412.0,
            "evaluate_s": 71.3,
            "baseline_ease_s": 20.1,
            "baseline_als_s": 16.0,
        },
        "granularities": {
            "behaviour": {"weight": 0.42, "ndcg@20_without": 0.271},
            "evolution": {"weight": 0.18, "ndcg@20_without": 0.291},
            "collaborative": {"weight": 0.81, "ndcg@20_without": 0.203},
            "social": {"weight": 0.09, "ndcg@20_without": 0.2971},
        },
        "data": {
            "items": 17632,
            "users": 1892,
            "queries": 1881,
            "targets": 18567,
            "dropped_targets": 3,
            "dropped_queries": 1,
            "exclude_seen": True,
            "fitted_through": "valid",
        },
    }


def manifest() -> Manifest:
    return Manifest(
        content_hash="9f2c4b7a10de",
        name="hetrec-lastfm",
        counts={
            "users": 1892,
            "items": 17632,
            "events": 92834,
            "train": 66841,
            "valid": 7426,
            "test": 18567,
        }
        | {"social_edges": 25434, "items_with_text": 11021},
        event_types=["interact", "tag"],
        ordered=False,
        timed=False,
        split={"kind": "given", "valid": 0.1, "valid_from": ""},
        quarantined={"events": {"duplicate": 31, "missing item_id": 4}, "social": {"self-loop": 2}},
        read={"events": 279348, "items": 17632, "social": 25436},
        shards=["part-00000.parquet"],
        text={"model": "all-MiniLM-L6-v2", "dimension": 384},
        timing={"read": 3.1},
        notes=["15,002 tag rows of held-out listens were left out of item text", HOSTILE],
    )


def history() -> list[dict[str, Any]]:
    def row(phase: str, epoch: int) -> dict[str, Any]:
        loss = 5.1 + 3.5 * math.exp(-epoch / 6) - (0.15 if phase == "refit" else 0.0)
        return {
            "phase": phase,
            "epoch": epoch,
            "loss": loss,
            "lr": 3e-3 * (1 - epoch / 30),
            "seconds": 8.1,
        }

    valid = {e: 0.19 * (1 - math.exp(-e / 5)) - 0.0006 * max(0, e - 18) for e in range(2, 25, 2)}
    select = [
        row("select", e) | ({"ndcg@20": valid[e]} if e in valid else {}) for e in range(1, 25)
    ]
    return select + [row("refit", e) for e in range(1, 21)]


def examples() -> list[dict[str, Any]]:
    titles = [
        "Radiohead",
        "Portishead",
        "Massive Attack",
        "Björk",
        "The Cure",
        HOSTILE,
        "Sigur Rós",
        "坂本龍一",
        "Air",
    ]
    titles += [
        "Godspeed You! Black Emperor and a title that is far too long for any column",
        "Boards of Canada",
        "Low",
    ]

    def recommendation(place: int, user: int) -> dict[str, Any]:
        shares = {
            "behaviour": 1.6 - 0.08 * place,
            "evolution": 0.5 - 0.13 * place,
            "collaborative": 2.4 - 0.1 * place + 0.2 * user,
            "social": 0.3 - 0.1 * (place % 4),
        }
        title = titles[(place * 5 + user) % len(titles)]
        return {
            "item": str(place),
            "title": title,
            "score": sum(shares.values()),
            "shares": shares,
            "hit": place in (0, 3),
        }

    users = [("2", titles + titles), ("<b>7</b>", titles[:3])]
    return [
        {"user": name, "history": past, "recommendations": [recommendation(p, u) for p in range(8)]}
        for u, (name, past) in enumerate(users)
    ]


class Page(HTMLParser):
    """Tags, attributes and text of a page; raises when a tag is closed that is not open."""

    VOID = ("meta", "br", "hr", "img", "input", "link", "path")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def page(tmp_path) -> Page:
    path = tmp_path / "report.html"
    render_report(path, evaluation_json(), manifest(), history(), examples(), "seed: 42 # <i>")
    return Page(path.read_text(encoding="utf-8"))


def test_page_is_well_formed_and_loads_nothing(page: Page) -> None:
    assert page.open == []
    tags = {tag for tag, _ in page.seen}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.seen:
        assert not {"src", "href", "srcset"} & set(attributes), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    style = page.words[next(i for i, word in enumerate(page.words) if ":root" in word)]
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme: dark" in style


def test_titles_names_and_notes_are_escaped(page: Page) -> None:
    tags = [tag for tag, _ in page.seen]
    # the gridlines are <i>, the configuration's is text
    assert "script" not in tags and "i" in tags
    assert HOSTILE in page.text and "User <b>7</b>" in page.text and "seed: 42 # <i>" in page.text
    assert any(attributes.get("title") == HOSTILE for _, attributes in page.seen)


def test_page_has_all_figures(page: Page) -> None:
    for expected in (
        "hetrec-lastfm",
        "The model is better than EASE, the best baseline: its NDCG@20 is 8.0 % higher.",
        "With 95 % confidence, the model is",
        "+0.0220",
        "1 881 test users",
        "0.2959",
        "Item-kNN",
        "24 epochs + 20 of the refit, highest learning rate",
        "Epoch 20 was best on validation",
        "trained again for 20 epochs",
        "10–19",
        "without friends",
        "targets new to training",
        "missing item_id",
        "self-loop",
        "all-MiniLM-L6-v2",
        "62.5 % of items",
        "given (valid 0.1)",
        "none: histories are sets",
        "6 min 52 s",
        "9f2c4b7a10de",
    ):
        assert expected in page.text, expected


def test_shares_of_both_signs_are_drawn_inside_their_track(page: Page) -> None:
    pieces = [
        a
        for tag, a in page.seen
        if tag == "b" and (a.get("title") or "").startswith(("behaviour", "social"))
    ]
    assert any("neg" in (piece["class"] or "") for piece in pieces)
    for piece in pieces:
        left, width = (
            float(part.split(":")[1].rstrip("%")) for part in (piece["style"] or "").split(";")
        )
        assert left >= -0.01 and left + width <= 100.01


@pytest.mark.parametrize(
    ("low", "high", "status", "start"),
    [
        (0.001, 0.01, "better", "The model is better than EASE"),
        (-0.01, 0.01, "unclear", "The model is not clearly better or worse than EASE"),
        (-0.02, -0.01, "worse", "The model is worse than EASE"),
    ],
)
def test_verdict_follows_the_interval(low: float, high: float, status: str, start: str) -> None:
    content = evaluation_json()
    content["comparison"]["against"]["ease"] |= {"low": low, "high": high, "p": 0.25}
    found = verdict(content)
    assert found["status"] == status and found["head"].startswith(start)
    assert ("may be chance" in found["text"]) == (status == "unclear")


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.0274, 0.0548, "the model is 10.0 % to 20.0 % better."),
        (-0.0548, -0.0274, "the model is 10.0 % to 20.0 % worse."),
        (-0.0274, 0.0548, "the model is between 10.0 % worse and 20.0 % better"),
    ],
)
def test_verdict_says_the_interval_in_words(low: float, high: float, words: str) -> None:
    content = evaluation_json()
    content["comparison"]["against"]["ease"] |= {"low": low, "high": high}
    assert words in verdict(content)["text"]


def test_verdict_of_a_baseline_without_hits_has_plain_differences() -> None:
    content = evaluation_json()
    content["baselines"]["ease"]["ndcg@20"] = 0.0
    content["comparison"]["against"]["ease"] |= {"difference": 0.2, "low": 0.1, "high": 0.3}
    found = verdict(content)
    assert (
        "its NDCG@20 is 0.2000 higher" in found["head"]
        and "0.1000 to 0.3000 better" in found["text"]
    )


def test_best_baseline_is_the_same_in_sentence_chart_segments_and_table(tmp_path: Path) -> None:
    """ALS has the highest metric on test, EASE on validation: the report means ALS everywhere."""
    content = evaluation_json()
    content["comparison"]["best_on_test"] = "als"
    content["comparison"]["against"]["als"] |= {
        "difference": -0.02,
        "low": -0.03,
        "high": -0.01,
        "p": 0.25,
    }
    content["baselines"]["als"] = {
        name: 1.2 * value for name, value in content["baselines"]["als"].items()
    }
    for entry in content["segments"]["history"].values():
        entry["against"] = {
            name: {"difference": 0.01, "low": 0.0, "high": 0.02, "p": 0.5}
            for name in ("ease", "als")
        }
    found = verdict(content)
    assert found["status"] == "worse" and found["head"].startswith(
        "The model is worse than ALS, the best baseline"
    )
    render_report(tmp_path / "r.html", content, manifest(), history(), [], "")
    text = Page((tmp_path / "r.html").read_text(encoding="utf-8")).text
    assert "against ALS, the best baseline" in text, "for whom"
    assert "ALS best baseline" in text, "chart"
    assert "95 % interval ALS, the best baseline" in text, "segments"
    assert "ALS (best baseline)" in text and "EASE (highest on validation)" in text, "table"
    assert "EASE best baseline" not in text and "EASE, the best baseline" not in text


def test_no_baseline_is_the_highest_on_validation_if_nothing_was_validated(tmp_path: Path) -> None:
    content = evaluation_json()
    content["comparison"] |= {"best_on_test": "als", "best_on_validation": None}
    for entry in content["comparison"]["against"].values():
        entry["validation"] = None
    render_report(tmp_path / "r.html", content, manifest(), history(), [], "")
    text = Page((tmp_path / "r.html").read_text(encoding="utf-8")).text
    assert "ALS (best baseline)" in text and "highest on validation" not in text


def test_first_screen_says_for_whom_the_model_is_better_and_worse(tmp_path: Path) -> None:
    content = evaluation_json()
    differences = {
        "1–4": (0.04, 0.06),
        "5–9": (-0.01, 0.03),
        "10–19": (-0.06, -0.04),
        "20–49": (0.01, 0.02),
    }
    for label, (low, high) in differences.items():
        against = {"difference": (low + high) / 2, "low": low, "high": high, "p": 0.1}
        content["segments"]["history"][label]["against"] = {"ease": against}
    found = for_whom(content)
    assert found is not None
    names = {
        status: [row["name"] for row in found[status]] for status in ("better", "unclear", "worse")
    }
    assert names == {
        "better": ["users with 1–4 events", "users with 20–49 events"],
        "unclear": ["users with 5–9 events"],
        "worse": ["users with 10–19 events"],
    }
    assert found["better"][0]["change"] == "+71 %"
    render_report(tmp_path / "r.html", content, manifest(), history(), [], "")
    text = Page((tmp_path / "r.html").read_text(encoding="utf-8")).text
    first = text.index("Worse for users with 10–19 events (140) −23 %")
    details = text.index("Details for engineers")
    assert first < details


def test_change_from_a_baseline_at_zero_is_said_in_words(tmp_path: Path) -> None:
    content = evaluation_json()
    for label, (ours, low) in {"1–4": (0.02, 0.01), "5–9": (0.0, -0.1)}.items():
        entry = content["segments"]["history"][label]
        entry["baselines"]["ease"]["ndcg@20"] = 0.0
        entry["against"] = {"ease": {"difference": ours, "low": low, "high": 0.1, "p": 0.1}}
    text = rendered(tmp_path, content).text
    assert "+0.0200, baseline 0" in text and "both 0" in text


def test_epochs_are_the_same_in_cost_and_training(tmp_path: Path) -> None:
    first, details = rendered(tmp_path, evaluation_json()).text.split("Details for engineers")
    words = "24 epochs + 20 of the refit"
    assert words in first and words in details and "before this stage" not in first
    content = evaluation_json()
    content["timing"]["train_s"] = 1.0  # shorter than its epochs: some ran in the search
    assert f"{words}, some of them before this stage" in rendered(tmp_path, content).text


def test_evaluation_of_an_earlier_release_has_no_panel_for_whom() -> None:
    assert for_whom(evaluation_json()) is None


def test_first_screen_shows_three_users_by_title_and_the_cost(tmp_path: Path) -> None:
    users = examples() * 2
    render_report(tmp_path / "r.html", evaluation_json(), manifest(), history(), users, "")
    text = Page((tmp_path / "r.html").read_text(encoding="utf-8")).text
    first = text[: text.index("Details for engineers")]
    assert first.count("Recommendations") == 3 and "granularit" not in first
    assert "Radiohead ✓" in first and "What it cost" in first and "8 min 52 s" in first


def member(kept: bool, why: str, alone: float | None = 0.2) -> dict[str, Any]:
    without = {"validation": 0.19, "test": None}
    if kept:
        without |= {"test": 0.2, "difference": 0.09, "low": 0.08, "high": 0.1, "p": 0.002}
    interval = None if alone is None else [alone - 0.01, alone + 0.01]
    alone_of = {"validation": 0.18, "test": alone, "interval": interval}
    return {
        "kind": "fitted",
        "alone": alone_of,
        "without": without,
        "weight": [0.1, 0.4],
        "kept": kept,
        "why": why,
    }


def test_members_and_signals_have_panels(tmp_path) -> None:
    content = evaluation_json()
    content["members"] = {
        "metric": "ndcg@20",
        "single": "item_cf",
        "is_single": True,
        "together": {
            "validation": 0.21,
            "cross_fitted": 0.2,
            "test": 0.2959,
            "interval": [0.28, 0.31],
        },
        "each": {
            "item_cf": member(True, "kept: it pays"),
            "user_cf": member(False, "dropped: it adds nothing", None),
        },
        "baselines": {
            name: {
                "alone": {"validation": 0.17, "test": 0.27, "interval": [0.26, 0.28]},
                "why": "beside",
            }
            for name in ("ease", "item_cf")
        },
    }
    figures = {"value": 0.3, "interval": [0.2, 0.4], "best_baseline": "als", "baseline": 0.35}
    figures |= {"difference": -0.05, "low": -0.09, "high": -0.01, "p": 0.01}
    signals = {"present": ["long history (5+)", "friends"], "missing": ["item text"]}
    content["signals"] = [
        {
            "label": "long history (5+), friends; without item text",
            **signals,
            "queries": 40,
            **figures,
        },
        {
            "label": "other combinations",
            "present": [],
            "missing": [],
            "queries": 7,
            **figures,
            "best_baseline": None,
        },
    ]
    render_report(tmp_path / "r.html", content, manifest(), [], [], "")
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert page.open == []
    for expected in (
        "chosen without them. A baseline is the published method; the member of the same name"
        " (item_cf)",
        "order and time. The model is its best single member, item_cf",
        "dropped: it adds nothing",
        "+0.0800 to +0.1000",
        "0.10 – 0.40",
        "Signal certificate",
        "long (5+)",
        "−0.0900 to −0.0100",
        "other combinations",
    ):
        assert expected in page.text, expected


def test_run_without_baselines_renders(tmp_path) -> None:
    """Without baselines, ablation, segments, training history, examples and rows read."""
    content = evaluation_json()
    content |= {
        "baselines": {},
        "segments": {},
        "comparison": {"metric": "ndcg@20", "best_baseline": None, "against": {}},
    }
    content["confidence"]["baselines"] = {}
    content["granularities"] = {"behaviour": {"weight": 1.0}}
    bare = manifest()
    bare.quarantined, bare.read, bare.notes, bare.text = {}, {}, [], {}
    render_report(tmp_path / "r.html", content, bare, [], [], "")
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert page.open == [] and "No baseline was run, so" in page.text and "NaN" not in page.text


@pytest.mark.parametrize("lacking", ["", "validation with less than 1 % of the targets"])
def test_note_on_known_future_is_in_the_part_for_engineers(tmp_path: Path, lacking: str) -> None:
    content = evaluation_json()
    content["data"]["foresight"] = Foresight(0.45, "2019-02-01", "2020-01-01", lacking).to_json()
    render_report(tmp_path / "r.html", content, manifest(), [], [], "")
    text = Page((tmp_path / "r.html").read_text(encoding="utf-8")).text
    managers, engineers = text.split("Details for engineers")
    assert "temporal" not in managers and "2019-02-01" not in managers
    for words in (
        "45 % of the time of the data",
        "2019-02-01",
        "data.split.kind: temporal",
        lacking,
    ):
        assert words in engineers, words


def test_constants_may_be_numbers_words_or_missing(tmp_path) -> None:
    content = evaluation_json()
    content["comparison"]["against"]["ease"]["constants"] = {
        "half_life": None,
        "l2": 300.0,
        "events": "targets",
    }
    render_report(tmp_path / "r.html", content, manifest(), [], [], "")
    text = Page((tmp_path / "r.html").read_text(encoding="utf-8")).text
    assert "half_life none, l2 300, events targets" in text


def test_one_epoch_with_a_diverged_loss_renders(tmp_path) -> None:
    rows = [{"epoch": 1, "loss": float("nan"), "valid_ndcg@20": 0.1, "lr": 0.1, "seconds": 1.0}]
    render_report(tmp_path / "r.html", evaluation_json(), manifest(), rows, [], "")
    assert (
        "Epoch 1 was best on validation"
        in Page((tmp_path / "r.html").read_text(encoding="utf-8")).text
    )


def test_axes_have_round_ticks_that_cover_the_values() -> None:
    assert axis([0.2, 0.3], from_zero=True).ticks == (0.0, 0.1, 0.2, 0.3)
    assert axis([0.213, 0.287]).ticks == (0.2, 0.22, 0.24, 0.26, 0.28, 0.3)
    assert axis([0.213, 0.287]).labels()[0] == (0.0, "0.20")
    assert axis([-0.02, 0.1], from_zero=True).low == -0.05
    for values in ([], [0.0], [7.0], [1e-9, 2e-9], [float("nan"), 3.0]):
        for from_zero in (True, False):
            scale = axis(values, from_zero)
            assert scale.high > scale.low and all(0 <= scale.at(v) <= 100 for v in values if v == v)


def test_curve_goes_up_with_its_values() -> None:
    drawn = curves([[(1, 0.0), (2, 0.5), (3, 1.0)], [], [(3, 0.0)]], mark_x=3)
    assert drawn is not None and len(drawn.lines) == 2 and drawn.mark == (100.0, 0.0)
    assert drawn.lines[0].points == ((0.0, 100.0), (50.0, 50.0), (100.0, 0.0))
    assert drawn.lines[0].path == "M0 100 L50 50 L100 0" and drawn.lines[1].points == (
        (100.0, 100.0),
    )
    assert drawn.x == [(0.0, "1"), (50.0, "2"), (100.0, "3")]
    assert curves([[(1, float("nan")), (2, float("inf"))]]) is None


def test_stacked_bars_share_one_zero_and_one_scale() -> None:
    zero, bars = stacked([{"a": 2.0, "b": 1.0}, {"a": 1.0, "b": -1.0}])
    assert zero == 25.0
    assert [(p.left, p.width) for p in bars[0]] == [(25.0, 50.0), (75.0, 25.0)]
    assert [(p.left, p.width) for p in bars[1]] == [(25.0, 25.0), (0.0, 25.0)]
    assert stacked([]) == (0.0, []) and stacked([{"a": 0.0}])[1][0][0].width == 0.0


def test_user_clusters_are_shown_with_choice_items_and_example_users(tmp_path: Path) -> None:
    """Of 4 and 8 clusters, 8 were chosen; an example user is in the second; names are escaped."""
    stratum = {
        "stratum": 2,
        "share": 0.25,
        "members": 40,
        "radius": 0.1,
        "nearest": 0.3,
        "terms": ["trip", "hop"],
    }
    strata = {
        "method": "kmeans",
        "by": "text",
        "explained": 0.5,
        "sharpness": 0.8,
        "choice": {"chosen": 8, "candidates": {"4": -5.4, "8": -5.3}, "popularity": -5.5},
        "strata": [{**stratum, "items": ["Portishead", HOSTILE]}],
    }
    users = examples()
    users[0]["strata"] = [{"stratum": 2, "weight": 0.7}, {"stratum": 5, "weight": 0.2}]
    path = tmp_path / "report.html"
    render_report(
        path, {**evaluation_json(), "strata": strata}, manifest(), history(), users, "seed: 42"
    )
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == [] and "script" not in [tag for tag, _ in page.seen]
    for words in (
        "User clusters (strata)",
        "8 clusters",
        "−5.300",
        "Portishead · " + HOSTILE,
        "trip, hop",
        "25.0 %",
    ):
        assert words in page.text, words
    assert "In cluster 2 (70 %), cluster 5 (20 %)" in page.text


def test_twenty_members_have_twenty_fills(tmp_path: Path) -> None:
    content = evaluation_json()
    content["granularities"] = {f"member_{n}": {"weight": float(n > 3)} for n in range(20)}
    shares = {f"member_{n}": 0.1 for n in range(4, 20)}
    users = [
        {**example, "recommendations": [{**example["recommendations"][0], "shares": shares}]}
        for example in examples()
    ]
    render_report(tmp_path / "r.html", content, manifest(), history(), users, "")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    fills = re.findall(r'<div class="bar (c\d+)"', text)
    assert len(set(fills[:20])) == 20
    keys = dict(re.findall(r'<span class="key (c\d+)">(member_\d+)</span>', text))
    assert sorted(keys.values()) == sorted(shares), "dropped members have no key"
    assert {f"c{n}" for n in range(8)} <= set(keys), (
        "members with a weight have the plain colours first"
    )
    looks = set()
    for number in range(24):
        colour = re.search(rf"\.c{number}\b[^{{}}]*{{ --c: var\((--g\d)\)", text)
        pattern = re.search(rf"\.c{number}\b[^{{}}]*{{ --turn: [^;]*;\s*--p: ([^;]*);", text)
        assert colour is not None
        looks.add((colour.group(1), pattern.group(1) if pattern else "plain"))
    assert len(looks) == 24, "each fill has its own colour and pattern"


def test_segments_are_named_in_plain_words(tmp_path: Path) -> None:
    content = evaluation_json()
    one = content["segments"]["items"].pop("targets new to training")
    content["segments"]["items"] = {"new_targets": one, "repeat_targets": one}
    render_report(tmp_path / "r.html", content, manifest(), history(), [], "")
    text = Page((tmp_path / "r.html").read_text(encoding="utf-8")).text
    assert "items new to the user" in text and "items the user had before" in text
    assert "new_targets" not in text and "repeat_targets" not in text


def rendered(folder: Path, content: dict[str, Any], name: str = "") -> Page:
    render_report(folder / "r.html", content, manifest(), history(), examples(), "", name)
    return Page((folder / "r.html").read_text(encoding="utf-8"))


def test_title_is_the_name_of_the_run_and_the_dataset_is_named_below(tmp_path: Path) -> None:
    text = rendered(tmp_path, evaluation_json(), "spring").text
    assert text.startswith("spring · Multigrain report") and "data hetrec-lastfm ·" in text


def test_cost_lists_search_members_and_training_on_all_events(tmp_path: Path) -> None:
    content = evaluation_json()
    content["timing"] |= {"search_s": 130.0, "members_s": 9.5, "workers_s": 12.0, "final_s": 300.0}
    content["timing"] |= {"register_s": 0.1}
    content["data"]["final"] = {"through": "test", "events": 92834, "epochs": 20, "start": "anew"}
    first = rendered(tmp_path, content).text.split("Details for engineers")[0]
    for words in (
        "Search for settings 2 min 10 s",
        "Constants and weights of the members 9.5 s",
        "Starting the workers 12 s",
        "Training on all events 5 min 0 s",
        "16 min 23 s of computing",
    ):
        assert words in first, words
    assert "Registration" not in first, "shorter than half a second"
    assert "Without the training on all events" not in first


def test_cost_says_when_the_training_on_all_events_is_not_in_it(tmp_path: Path) -> None:
    content = evaluation_json()
    content["data"]["final"] = {"through": "test", "events": 92834, "epochs": 20, "start": "anew"}
    assert "Without the training on all events" in rendered(tmp_path, content).text


def test_only_accuracy_metrics_are_bold(tmp_path: Path) -> None:
    rendered(tmp_path, evaluation_json())
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    table = html[html.index("<h2>All metrics</h2>") :].split("</section>")[0]
    bold = {
        row.split("</th>")[0]
        for row in table.split("<tr><th>")[1:]
        if '<span class="best">' in row.split("</tr>")[0]
    }
    assert bold == {f"{metric}@{k}" for metric in METRICS for k in (10, 20)}
    assert "td.us { font-weight: 400; }" in html, "the model's column is not bold as a whole"
    assert "never bold" in table


def test_smallest_possible_p_is_an_upper_bound(tmp_path: Path) -> None:
    content = evaluation_json()
    content["comparison"]["against"]["als"]["p"] = 0.37
    page = rendered(tmp_path, content)
    cells = [word.strip() for word in page.words]
    assert cells.count("≤ 0.002") == 3 and cells.count("0.37") == 1


def test_only_the_baselines_of_the_report_are_explained(tmp_path: Path) -> None:
    content = evaluation_json()
    text = rendered(tmp_path, content).text
    assert "EASE: a linear model" in text and "ALS: matrix factorisation" in text
    assert "Own frequency:" not in text


def test_segments_of_all_users_are_named_in_one_line(tmp_path: Path) -> None:
    content = evaluation_json()
    whole = content["segments"]["friends"].pop("with friends") | {"queries": 1881}
    content["segments"] |= {"friends": {"with friends": whole}}
    text = rendered(tmp_path, content).text
    assert "all test users are in one segment: by friends (with friends)." in text
    assert text.count("with friends") == 1 and "targets new to training" in text


@pytest.mark.parametrize(("targets", "said"), [(1881, True), (1882, False)])
def test_equal_metrics_are_explained_only_if_every_user_has_one_target(
    tmp_path: Path, targets: int, said: bool
) -> None:
    content = evaluation_json()
    content["data"]["targets"] = targets
    assert ("Recall equals Hit" in rendered(tmp_path, content).text) == said


def test_certificate_of_one_combination_is_one_line(tmp_path: Path) -> None:
    content = evaluation_json()
    entry = {"label": "long history (5+)", "present": ["long history (5+)"], "missing": []}
    content["signals"] = [entry | {"queries": 1881, "value": 0.3, "best_baseline": None}]
    text = rendered(tmp_path, content).text
    assert "All test queries have the same signals: long history (5+)." in text
