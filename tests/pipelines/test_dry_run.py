"""A dry run finds every mistake that needs no data."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.command_line.configuration_checks import check
from recsys.config import build_config
from recsys.config.values import ACCURACY, metric_name
from recsys.errors import ConfigError
from recsys.evaluation.metrics import QUERY_METRICS

Captured = pytest.CaptureFixture[str]
MODEL = "model: {granularities: {collaborative: {enabled: true}}}\n"
PREPARES, TRAINS = ("prepare",), ("prepare", "train", "evaluate")


def test_metrics_of_the_evaluation_are_accepted_in_upper_and_lower_case() -> None:
    assert set(ACCURACY) == set(QUERY_METRICS)
    assert metric_name(" NDCG@10 ") == "ndcg@10"


@pytest.mark.parametrize(
    "name", ["ndcg", "ndgc@10", "ndcg@0", "ndcg@-1", "ndcg@10.5", "coverage@10", "ndcg@99999999"]
)
def test_wrong_metric_is_refused_with_the_valid_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.metric.*ndcg@K"):
        build_config(
            {
                "model": {"granularities": {"evolution": {"enabled": True}}},
                "train": {"metric": name},
            }
        )


@pytest.mark.parametrize("text", ["01.11.2020", "2020", "yesterday", "2020-02-30"])
def test_wrong_time_gives_a_message_with_the_format(text: str) -> None:
    split = {"kind": "temporal", "valid_from": text}
    config = build_config({"data": {"split": split}})
    with pytest.raises(
        ConfigError, match=r"data\.split\.valid_from: .* is not a time such as 2024-03-01"
    ):
        check(config, PREPARES)
    check(config, ("evaluate",))


def test_validation_after_test_is_refused() -> None:
    split = {"kind": "temporal", "valid_from": "2020-12-01", "test_from": "2020-11-01"}
    config = build_config({"data": {"split": split}})
    with pytest.raises(
        ConfigError, match="valid_from 2020-12-01 is not before data.split.test_from 2020-11-01"
    ):
        check(config, PREPARES)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"data": {"split": {"test_from": "2020-01-01"}}},
            r"data\.split\.test_from is for kind temporal only",
        ),
        ({"data": {"order": "none", "split": {"kind": "leave-last"}}}, "leave-last needs an order"),
        ({"data": {"context_numbers": ["a"]}}, r"data\.context_numbers names a"),
        ({"data": {"text": {"event_types": ["tag"]}}}, "event_column is empty"),
        (
            {"data": {"interactions": ["a"], "text": {"event_types": ["a"], "event_column": "b"}}},
            "both name a",
        ),
        ({"train": {"loss": {"kind": "sampled_softmax", "label_smoothing": 0.1}}}, "full_softmax"),
        (
            {"train": {"history_mask_rate": 0.3}, "data": {"order": "time"}},
            "history_mask_rate.*order",
        ),
        (
            {"model": {"granularities": {"evolution": {"enabled": True, "states": "formula"}}}},
            "states formula",
        ),
        (
            {"model": {"granularities": {"evolution": {"enabled": True, "query_context": ["a"]}}}},
            "query_context",
        ),
        (
            {"model": {"granularities": {"behaviour": {"enabled": True, "input": "user_text"}}}},
            "data.text.users",
        ),
        (
            {
                "train": {"shard_rows": True},
                "model": {"granularities": {"social": {"enabled": True}}},
            },
            "social reads the vectors of all items",
        ),
        (
            {"train": {"shard_rows": True, "loss": {"kind": "full_softmax"}}},
            "full_softmax scores all items",
        ),
        ({"model": {"item": {"id": False}}, "data": {"text": {"enabled": False}}}, "both false"),
        (
            {
                "model": {
                    "fusion": {"kind": "weighted"},
                    "granularities": {"collaborative": {"weight": 0}},
                }
            },
            "every model.granularities.NAME.weight is 0",
        ),
    ],
)
def test_contradicting_settings_are_refused(
    tree: dict[str, dict[str, object]], message: str
) -> None:
    model = {"granularities": {"collaborative": {"enabled": True}}}
    given = dict(tree.get("model", {}))
    sections = dict(given.pop("granularities", {}))  # type: ignore[call-overload]
    sections["collaborative"] = {"enabled": True, **sections.get("collaborative", {})}
    config = build_config({**tree, "model": {**model, **given, "granularities": sections}})
    with pytest.raises(ConfigError, match=message):
        check(config, TRAINS)
    check(config, ("recommend",))


def test_settings_of_training_are_not_checked_for_prepare() -> None:
    tree = {"train": {"loss": {"kind": "sampled_softmax", "label_smoothing": 0.1}}}
    check(build_config(tree), PREPARES)


def _file(tmp_path: Path, source: str, model: str = MODEL) -> list[str]:
    path = tmp_path / "mine.yaml"
    path.write_text(f"{model}data:\n  source: {source}\n", encoding="utf-8")
    return ["--config", str(path), "--run.dir", str(tmp_path / "run"), "--dry-run"]


@pytest.mark.parametrize("verb", ["run", "prepare", "update"])
def test_missing_file_is_found_by_every_verb_that_reads_the_source(
    verb: str, tmp_path: Path, capsys: Captured
) -> None:
    words = _file(tmp_path, f"{{kind: canonical, events: [{tmp_path}/nowhere.csv]}}")
    assert main([verb, *words]) == 2
    assert "nowhere.csv" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_missing_file_is_ignored_by_verbs_that_do_not_read_it(
    tmp_path: Path, capsys: Captured
) -> None:
    words = _file(tmp_path, f"{{kind: canonical, events: [{tmp_path}/nowhere.csv]}}")
    assert main(["evaluate", *words]) == 0
    assert "Nothing was done" in capsys.readouterr().out


def test_no_verb_needs_a_model_section_and_train_says_that_auto_chooses_it(
    tmp_path: Path, capsys: Captured
) -> None:
    words = _file(tmp_path, "{kind: synthetic}", model="")
    assert main(["prepare", *words]) == 0
    shown = capsys.readouterr().out
    assert "granularities" not in shown and "kind: synthetic" in shown
    assert main(["train", *words]) == 0
    assert "model auto" in capsys.readouterr().out
