"""The typed configuration: equal dotted paths, errors for spelling mistakes, and a lossless
dump.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.plumbing.reference import sections
from recsys.config import (
    Config,
    build_config,
    dump_config,
    load_config,
    parse_value,
    redact,
    redacted,
    renamed,
    set_path,
)
from recsys.config.outside import reading_artifact
from recsys.errors import ConfigError
from recsys.training.separate_models import own_config
from tune.space import load_space

CONFIGS = sorted((Path(__file__).parents[2] / "pipelines" / "configs").glob("*.yaml"))
SMALLEST = {"model": {"granularities": {"evolution": {"enabled": True}}}}


def test_all_golden_configs_exist() -> None:
    names = ["beauty", "check-ins", "ciao", "demo", "deskdrop"]
    names += ["lastfm-leave-one-out-members", "lastfm-leave-one-out", "lastfm-members", "lastfm"]
    names += ["ml-100k-members", "ml-100k", "online-retail", "sports"]
    assert [path.stem for path in CONFIGS] == names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_golden_configs_are_valid_and_name_their_origin(path: Path) -> None:
    config = load_config(path)
    head = path.read_text(encoding="utf-8").split("\nrun:")[0]
    words = ("data", "command", "date", "result", *(() if path.stem == "demo" else ("auto",)))
    assert all(f"# {word}:" in head for word in words)
    assert str(path.relative_to(path.parents[2])) in head
    assert config.model.granularities.enabled()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_dump_reads_back_equal(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    copy = tmp_path / "config.yaml"
    copy.write_text(dump_config(config), encoding="utf-8")
    assert load_config(copy) == config


def test_command_line_yaml_and_tree_are_one_path(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump({**SMALLEST, "train": {"lr": 0.0003}}), encoding="utf-8")
    from_yaml = load_config(path)
    path.write_text(yaml.safe_dump(SMALLEST), encoding="utf-8")
    from_command_line = load_config(path, [("train.lr", "3e-4")])
    tree: dict[str, object] = {}
    set_path(tree, "train.lr", 3e-4)
    assert from_yaml == from_command_line == build_config({**SMALLEST, **tree})


def test_later_overrides_win(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(SMALLEST), encoding="utf-8")
    assert load_config(path, [("seed", "1"), ("seed", "2")]).seed == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("-1.5E+2", -150.0),
        ("true", True),
        ("7", 7),
        ("[5, 10]", [5, 10]),
        ("abc", "abc"),
        ("nan", "nan"),
        ("inf", "inf"),
        ("1e5x", "1e5x"),
        ("models:/a@b", "models:/a@b"),
    ],
)
def test_values_of_the_command_line_are_typed(text: str, value: object) -> None:
    assert parse_value("some.key", text) == value


@pytest.mark.parametrize(
    ("dotted", "text", "value"),
    [
        ("run.name", "try #2", "try #2"),
        ("run.name", "1e5", "1e5"),
        ("run.name", "on", "on"),
        ("run.name", "null", "null"),
        ("run.name", "a: b", "a: b"),
        ("run.name", "'in quotes'", "in quotes"),
        ("run.name", "'a' and 'b'", "'a' and 'b'"),
        ("run.name", "", None),
        ("run.dir", "runs/exp #2", "runs/exp #2"),
        ("pull.dir", "served #2", "served #2"),
        ("data.from", "2020-01-31", "2020-01-31"),
        ("data.source.time_format", "%d/%m/%Y", "%d/%m/%Y"),
        ("data.source.separator", "|", "|"),
        ("data.source.separator", ": ", ": "),
        ("data.source.separator", "\t", "\t"),
        ("data.source.separator", "{events: ';'}", {"events": ";"}),
        ("data.source.comment", "#", "#"),
        ("data.source.clock", "[hour, minute]", ["hour", "minute"]),
        ("data.source.decimal", ",", ","),
        ("data.source.rename.Order #", "order #", "order #"),
        ("data.source.events", "['a #1.csv']", ["a #1.csv"]),
        ("data.text.fields", "null", None),
        ("train.use_gpu", "true", True),
        ("update.model", "models:/a@b", "models:/a@b"),
    ],
)
def test_text_of_the_command_line_is_not_read_as_yaml(
    dotted: str, text: str, value: object
) -> None:
    assert parse_value(dotted, text) == value


@pytest.mark.parametrize(
    ("dotted", "text"),
    [("tune.space", "a #2.yaml"), ("seed", "7 # of the day"), ("data.text.fields", "#")],
)
def test_value_that_yaml_would_shorten_is_refused(dotted: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"--{dotted}: .* has the comment '#.*in quotes"):
        parse_value(dotted, text)


def test_option_changes_one_of_the_sections_that_share_a_yaml_alias(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "model:\n  granularities:\n    item_knn: &one {enabled: true}\n    user_cf: *one\n"
    )
    config = load_config(path, [("model.granularities.user_cf.enabled", "false")])
    assert config.model.granularities.item_knn.enabled
    assert not config.model.granularities.user_cf.enabled


def test_number_becomes_text_where_a_text_is_expected(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(SMALLEST), encoding="utf-8")
    assert load_config(path, [("run.name", "2026")]).run.name == "2026"


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("postgresql://me:secret@host/db", "postgresql://***@host/db"),
        (
            "see postgresql+psycopg2://me:se@cr/et@host/db now",
            "see postgresql+psycopg2://***@host/db now",
        ),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("http://host:5000 and me@host", "http://host:5000 and me@host"),
    ],
)
def test_credentials_are_removed_from_uris(text: str, public: str) -> None:
    assert redact(text) == public
    config = build_config({**SMALLEST, "tracking": {"uri": text}})
    assert redacted(config).tracking.uri == public and config.tracking.uri == text


def test_variables_are_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    source = {"kind": "recbole", "folder": "$RECSYS_DATA/ml-100k"}
    monkeypatch.setenv("RECSYS_DATA", "/somewhere")
    assert (
        build_config({**SMALLEST, "data": {"source": source}}).data.source.folder
        == "/somewhere/ml-100k"
    )  # type: ignore[union-attr]
    monkeypatch.delenv("RECSYS_DATA")
    assert (
        build_config({**SMALLEST, "data": {"source": source}}).data.source.folder == "data/ml-100k"
    )  # type: ignore[union-attr]


def test_variable_that_is_not_set_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_PLACE", raising=False)
    with pytest.raises(ConfigError, match=r"run\.dir.*NO_SUCH_PLACE is not set"):
        build_config({**SMALLEST, "run": {"dir": "$NO_SUCH_PLACE/x"}})


def test_unknown_key_lists_the_valid_ones() -> None:
    with pytest.raises(
        ConfigError,
        match=r"train\.learning_rate: unknown key; valid keys here: batch_size, .*\blr\b",
    ):
        build_config({**SMALLEST, "train": {"learning_rate": 1}})


def test_unknown_key_inside_the_source_names_its_path_without_the_tag() -> None:
    source = {"kind": "synthetic", "num_user": 10}
    with pytest.raises(ConfigError, match=r"data\.source\.num_user: unknown key; .*num_users"):
        build_config({**SMALLEST, "data": {"source": source}})


def test_dataset_folder_follows_the_run_unless_set() -> None:
    config = build_config({**SMALLEST, "run": {"dir": "runs/a/"}})
    assert config.dataset_dir == "runs/a/dataset"
    assert (
        build_config({**SMALLEST, "data": {"dir": "s3://bucket/set"}}).dataset_dir
        == "s3://bucket/set"
    )


def test_sections_are_frozen() -> None:
    """Renaming a section breaks every saved config.yaml and search space. Change this list only for
    that reason.
    """
    first = (
        "seed run data model train evaluate recommend similar update tune serve promote compare"
        " pull export"
    )
    expected = f"{first} referee forget ui tracking registry ray submit"
    assert list(Config.model_fields) == expected.split()


@pytest.mark.parametrize("text", ["2020-01-31", "2020-01-31T12:00:00"])
def test_time_stays_text_if_yaml_reads_a_date(text: str) -> None:
    tree = copy.deepcopy(SMALLEST)
    set_path(tree, "data.split.valid_from", parse_value("data.split.valid_from", text))
    assert build_config(tree).data.split.valid_from == text


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("evaluate.ks", "10,x", "expected a list, such as [10, 20] (got '10,x')"),
        ("train.epochs", "many", "expected a whole number (got 'many')"),
        ("train.epochs", "0", "expected greater than or equal to 1 (got 0)"),
        ("train.lr", "fast", "expected a number (got 'fast')"),
        ("train.refit", "perhaps", "expected true or false (got 'perhaps')"),
        ("train.use_gpu", "maybe", "expected 'auto', 'yes' or 'no' (got 'maybe')"),
    ],
)
def test_wrong_value_is_refused_with_the_expected_form(key: str, value: str, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config("pipelines/configs/demo.yaml", [(key, value)])
    assert f"{key}: {expected}" in str(error.value)


def test_every_key_has_a_description() -> None:
    assert [
        f"{key.path} {section.kind}"
        for section in sections()
        for key in section.keys
        if not key.about
    ] == []


@pytest.fixture
def console(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> pytest.CaptureFixture[str]:
    monkeypatch.setattr(renamed, "_announced", set())
    return capsys


_LINE = (
    "deprecated: train.hide_history is now called train.history_mask_rate; the next release refuses"
    " the old name\n"
)


def test_old_key_in_yaml_sets_the_new_key_with_one_line(
    tmp_path: Path, console: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("train: {hide_history: 0.3}\n", encoding="utf-8")
    assert (
        load_config(path).train.history_mask_rate
        == load_config(path).train.history_mask_rate
        == 0.3
    )
    assert console.readouterr().err == _LINE
    assert "hide_history" not in dump_config(load_config(path))


@pytest.mark.parametrize("in_file", ["hide_history", "history_mask_rate"])
@pytest.mark.parametrize("option", ["train.hide_history", "train.history_mask_rate"])
def test_option_of_either_name_wins_over_the_file(
    in_file: str, option: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"train: {{{in_file}: 0.3}}\n", encoding="utf-8")
    assert load_config(path, [(option, "0.2")]).train.history_mask_rate == 0.2


def test_wrong_value_of_an_old_option_is_blamed_on_the_command_line(
    console: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(
        ConfigError,
        match=r"option of the command line:\n  --train.history_mask_rate: .*less than 1",
    ):
        load_config(None, [("train.hide_history", "7")])
    assert console.readouterr().err == _LINE


def test_old_and_new_key_together_are_refused() -> None:
    with pytest.raises(
        ConfigError, match="hide_history is the old name of history_mask_rate, and both are given"
    ):
        build_config({"train": {"hide_history": 0.3, "history_mask_rate": 0.2}})


def test_old_key_in_an_artifact_is_read_without_a_line(console: pytest.CaptureFixture[str]) -> None:
    with reading_artifact():
        assert (
            Config.model_validate({"train": {"hide_history": 0.3}}).train.history_mask_rate == 0.3
        )
    assert console.readouterr().err == ""


def test_old_key_in_a_search_space_varies_the_new_key(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("train.hide_history: [0.1, 0.2]\n", encoding="utf-8")
    space = load_space([str(path)], build_config(SMALLEST))
    assert [dimension.path for dimension in space.dimensions] == ["train.history_mask_rate"]


def test_old_key_of_a_separate_model_sets_the_new_key() -> None:
    granularities = {"evolution": {"enabled": True}}
    apart = {
        "kind": "apart",
        "enabled": True,
        "model": {"granularities": granularities},
        "train": {"hide_history": 0.4},
    }
    config = build_config({"model": {"granularities": {**granularities, "second": apart}}})
    assert own_config(config, "second").train.history_mask_rate == 0.4


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (
            {"data": {"sources": {}}},
            r"data\.sources: unknown key; did you mean source\? Valid keys",
        ),
        ({"train": {"epoch": 3}}, r"train\.epoch: unknown key; did you mean epochs\? Valid keys"),
        ({"trian": {"epochs": 3}}, r"trian: unknown key; did you mean train\?"),
        (
            {"model": {"granularities": {"behavior": {}}}},
            r"granularities\.behavior: unknown key; did you mean behaviour\?",
        ),
        ({"data": {"source": {"kind": "canonicl"}}}, r"'canonicl'; did you mean canonical\?"),
        ({"train": {"loss": {"kind": "ful_softmax"}}}, r"did you mean full_softmax\?"),
        ({"train": {"metric": "ndgc@10"}}, r"unknown metric; did you mean ndcg\?"),
        ({"evaluate": {"metrics": ["ndgc"]}}, r"unknown metric; did you mean ndcg\?"),
        ({"evaluate": {"baselines": ["eas"]}}, r"\(got 'eas'\); did you mean ease\?"),
        ({"evaluate": {"ablation": "ful"}}, r"\(got 'ful'\); did you mean full\?"),
    ],
)
def test_mistyped_name_gives_the_likely_one(tree: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        build_config({**SMALLEST, **tree})


def test_wrong_text_is_shown_once() -> None:
    with pytest.raises(ConfigError) as error:
        build_config({**SMALLEST, "run": {"budget": "-5m"}})
    assert str(error.value).count("-5m") == 1
