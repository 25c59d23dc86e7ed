"""A mistyped option gives a message with the nearest valid one; a missing file is reported before
slow imports.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from pipelines.command_line.configuration_checks import check
from pipelines.command_line.file_checks import check_present
from pipelines.plumbing.arguments import UsageError, parse
from pipelines.plumbing.options import is_key, likely_meant
from pipelines.stages import VERBS
from recsys.config import build_config, load_config
from recsys.errors import ConfigError, SourceError

Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--budgt", "5m"], "--budgt: there is no such option; did you mean --budget?"),
        (["--dryrun"], "--dryrun: there is no such option; did you mean --dry-run?"),
        (["--train.lrr=3"], "--train.lrr: unknown key; did you mean --train.lr?"),
        (["--data.source.evnts", "a.csv"], "did you mean --data.source.events?"),
        (
            ["--zzzzqqq", "1"],
            "--zzzzqqq: there is no such option; `recsys help all` lists the options",
        ),
    ],
)
def test_mistyped_option_gives_a_message_with_the_nearest_one(
    words: list[str], expected: str
) -> None:
    with pytest.raises(UsageError) as error:
        parse(words)
    assert str(error.value).endswith(expected)


def test_files_of_a_repeated_option_add_up() -> None:
    words = ["--events", "monday.csv", "--seed", "1", "--events", "tuesday.csv", "b #2.csv"]
    config = load_config(None, parse(words).overrides)
    assert config.update.events == ["monday.csv", "tuesday.csv", "b #2.csv"] and config.seed == 1


def test_formats_in_two_options_are_refused(capsys: Captured) -> None:
    assert main(["export", "a", "--to", "onnx", "--to", "faiss", "--out", "b", "--dry-run"]) == 2
    assert "--to is given twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--config", "demo", "--budgt", "5m"],
        ["compare", "a", "b", "--budgt", "5m"],
        ["export", "a", "--budgt", "5m"],
        ["pull", "models:/a@b", "c", "--budgt", "5m"],
        ["doctor", "--budgt", "5m"],
        ["submit", "run", "--config", "demo", "--budgt", "5m"],
        ["similar", "--budgt", "5m"],
    ],
)
def test_every_verb_refuses_mistyped_options_with_code_2(
    words: list[str], capsys: Captured
) -> None:
    assert main(words) == 2
    assert (
        capsys.readouterr().err
        == "recsys: --budgt: there is no such option; did you mean --budget?\n"
    )


def test_options_of_another_verb_are_refused() -> None:
    short = dict(VERBS["recommend"].short)
    assert parse(["--out", "a.parquet", "--requests", "b.jsonl"], short).overrides == [
        ("recommend.out", "a.parquet"),
        ("recommend.requests", "b.jsonl"),
    ]
    with pytest.raises(UsageError, match="--out: there is no such option"):
        parse(["--out", "a.parquet"])


def test_free_names_and_whole_sections_are_options() -> None:
    names = (
        "data.source.rename.events.own column",
        "model.granularities.mine.kind",
        "seed",
        "train",
        "tune.space",
    )
    assert all(is_key(name) for name in names)
    assert likely_meant("epochs", []) == ["train.epochs", "update.epochs"]


def test_error_about_an_option_value_does_not_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("train: {epochs: 2}\nseed: none of it\n")
    with pytest.raises(ConfigError) as error:
        load_config(path, [("train.lr", "abc"), ("evaluate", "{ks: [], what: 1}")])
    of_file, _, of_options = str(error.value).partition("wrong option of the command line:\n")
    assert (
        of_file
        == f"wrong configuration in {path}:\n  seed: expected a whole number (got 'none of it')\n"
    )
    lines = of_options.splitlines()
    assert lines[0] == "  --train.lr: expected a number (got 'abc')" and len(lines) == 3
    assert lines[1].startswith("  --evaluate.ks: ") and lines[2].startswith(
        "  --evaluate.what: unknown key"
    )


@pytest.mark.parametrize(
    ("section", "kind", "reason"),
    [
        ("data.source", "parquet", "got 'parquet'; expected one of"),
        ("data.source", "no_such_module:Source", "no_such_module:Source cannot be imported"),
        ("model.granularities.mine", "foo", "kind 'foo' is neither module:Class"),
    ],
)
def test_error_about_a_kind_of_the_command_line_names_the_option(
    tmp_path: Path, section: str, kind: str, reason: str
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "data: {source: {kind: synthetic}}\nmodel: {granularities: {behaviour: {enabled: true}}}\n"
    )
    with pytest.raises(ConfigError) as error:
        load_config(path, [(f"{section}.kind", kind)])
    first, second = str(error.value).splitlines()
    assert first == "wrong option of the command line:"
    assert second.startswith(f"  --{section}.kind: {reason}")


# ------------------------------------------------------------------------------------ missing files


def _check_present(tree: dict[str, Any], verb: str) -> None:
    config = build_config(tree)
    check_present(config.data, config.recommend, config.update, VERBS[verb].stages)


@pytest.mark.parametrize(
    ("tree", "stages", "error", "says"),
    [
        (
            {"data": {"source": {"kind": "canonical", "events": ["gone.csv"]}}},
            "run",
            SourceError,
            "gone.csv does not",
        ),
        (
            {"data": {"source": {"kind": "recbole", "folder": "gone", "name": "x"}}},
            "prepare",
            SourceError,
            "gone does",
        ),
        (
            {"data": {"source": {"kind": "sequences", "events": "gone.txt"}}},
            "tune",
            SourceError,
            "gone.txt does not",
        ),
        (
            {"update": {"events": ["gone.csv"]}},
            "update",
            ConfigError,
            "update.events: gone.csv does not exist",
        ),
        (
            {"recommend": {"requests": "gone.jsonl"}},
            "recommend",
            ConfigError,
            "recommend.requests: gone.jsonl does",
        ),
    ],
)
def test_missing_file_is_reported_with_its_key(
    tree: dict, stages: str, error: type, says: str
) -> None:  # type: ignore[type-arg]
    with pytest.raises(error, match=says):
        _check_present(tree, stages)


def test_globs_and_remote_files_are_not_checked_in_advance() -> None:
    source = {"kind": "canonical", "events": ["no/such/*.csv", "s3://bucket/events.csv"]}
    _check_present({"data": {"source": source}}, "run")


def test_missing_file_is_reported_before_slow_imports(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("data: {source: {kind: canonical, events: [gone.csv]}}\n")
    program = (
        "import sys; from pipelines.cli import main; code = main(sys.argv[1:]); "
        "print(code, sorted({'ray', 'torch', 'mlflow', 'polars', 'pyarrow'} & set(sys.modules)))"
    )
    words = ["run", "--config", "own.yaml", "--run.dir", "run"]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r}); {program}", *words],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "2 []\n", done.stderr
    assert done.stderr.startswith("recsys: gone.csv does not exist; expected a file")
    assert not (tmp_path / "run").exists(), "no run folder is left"


def test_existing_file_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("user_id,item_id\n1,2\n")
    config = build_config(
        {"data": {"source": {"kind": "canonical", "events": [str(tmp_path / "events.csv")]}}}
    )
    check_present(config.data, config.recommend, config.update, VERBS["run"].stages)
    check(config, VERBS["prepare"].stages)
