"""Mistakes of users: each gives one clear message on stderr, without a traceback, and exit code
2."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
import yaml

from pipelines.cli import main
from recsys.data.manifest import SCHEMA_VERSION

Captured = pytest.CaptureFixture[str]
Tree = dict[str, Any]

CONFIG_MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    # name: (arguments of the command line, words of the message); CONFIG is replaced by a good file
    "unknown verb": (
        ["trian", "--config", "CONFIG"],
        ["unknown verb 'trian'; did you mean train?", "prepare, train"],
    ),
    "no configuration": (["run"], ["--config FILE is missing", "pipelines/configs"]),
    "no such configuration": (["run", "--config", "nowhere.yaml"], ["nowhere.yaml does not exist"]),
    "option without a value": (
        ["run", "--config", "CONFIG", "--train.lr"],
        ["--train.lr needs a value"],
    ),
    "stray word": (["run", "--config", "CONFIG", "fast"], ["unexpected argument 'fast'"]),
    "unknown key": (
        ["run", "--config", "CONFIG", "--train.learning_rate", "1"],
        ["train.learning_rate: unknown key", "lr"],
    ),
    "unknown section": (
        ["run", "--config", "CONFIG", "--trian.lr", "1"],
        ["trian.lr: unknown key", "train"],
    ),
    "key below a value": (
        ["run", "--config", "CONFIG", "--seed", "1", "--seed.x", "1"],
        ["'seed' is a value"],
    ),
    "wrong type": (
        ["run", "--config", "CONFIG", "--train.epochs", "many"],
        ["train.epochs", "expected a whole number", "'many'"],
    ),
    "out of range": (
        ["run", "--config", "CONFIG", "--train.lr", "-1"],
        ["train.lr", "greater than 0", "-1"],
    ),
    "unknown choice": (
        ["run", "--config", "CONFIG", "--model.granularities.evolution.cell", "rnn"],
        ["model.granularities.evolution.cell", "'lstm', 'gru', 'attention' or 'hstu'", "'rnn'"],
    ),
    "not a YAML value": (
        ["run", "--config", "CONFIG", "--evaluate.ks", "[1, 2"],
        ["--evaluate.ks", "not a YAML value"],
    ),
    "unknown metric": (
        ["run", "--config", "CONFIG", "--train.metric", "ndgc@20"],
        ["ndgc", "ndcg"],
    ),
    "no granularity": (
        ["run", "--config", "CONFIG", "--model.granularities.evolution.enabled", "false"],
        ["no granularity is enabled", "behaviour"],
    ),
    "item without anything": (
        ["run", "--config", "CONFIG", "--model.item.id", "false", "--model.item.text", "false"],
        ["item.id or item.text"],
    ),
    "unknown adapter": (
        ["run", "--config", "CONFIG", "--data.source.kind", "excel"],
        ["data.source", "'excel'", "recbole"],
    ),
    "variable not set": (
        ["run", "--config", "CONFIG", "--data.dir", "$NO_SUCH_PLACE/x"],
        ["data.dir", "NO_SUCH_PLACE is not set"],
    ),
    "credentials in a URI": (
        ["train", "--config", "CONFIG", "--run.dir", "s3://AKIA0:secret@bucket/run"],
        ["run.dir", "s3:// URI has credentials", "AWS_ACCESS_KEY_ID"],
    ),
    "run folder is a file": (
        ["train", "--config", "CONFIG", "--run.dir", "CONFIG"],
        ["run.dir", "cannot create the folder"],
    ),
}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A good small configuration without text, with tracking in its own file."""
    (tmp_path / "data.txt").write_text(
        "".join(f"u{u} a b c d e\n" for u in range(6)), encoding="utf-8"
    )
    return {
        "run": {"dir": str(tmp_path / "run")},
        "data": {
            "source": {"kind": "sequences", "events": str(tmp_path / "data.txt")},
            "text": {"enabled": False},
            "num_shards": 1,
        },
        "model": {
            "width": 8,
            "item": {"text": False},
            "granularities": {"evolution": {"enabled": True}},
        },
        "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
    }


def _write(tree: Tree, tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return str(path)


def _refused(words: list[str], expected: list[str], capsys: Captured) -> None:
    """Assert that the command ends with 2 and a message with all of ``expected``, without a
    traceback."""
    capsys.readouterr()
    code = main(words)
    message = capsys.readouterr().err
    assert code == 2, message
    assert message.count("recsys: ") == 1 and "Traceback" not in message
    for part in expected:
        assert part in message, f"{part!r} is not in {message!r}"


@pytest.mark.parametrize("name", CONFIG_MISTAKES)
def test_bad_arguments_and_settings_are_refused(
    name: str, tree: Tree, tmp_path: Path, capsys: Captured
) -> None:
    words, expected = CONFIG_MISTAKES[name]
    path = _write(tree, tmp_path)
    _refused([path if word == "CONFIG" else word for word in words], expected, capsys)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"train: [1, 2", ["not valid YAML"]),
        (b"- run\n- train\n", ["expected sections", "list"]),
        (b"\xff\xfe\x00", ["not valid YAML"]),
        (b"", ["data.source", "recsys init"]),
    ],
    ids=["broken YAML", "a list", "not UTF-8", "empty"],
)
def test_bad_configuration_file_is_refused(
    content: bytes, expected: list[str], tmp_path: Path, capsys: Captured
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    _refused(["run", "--config", str(path)], expected, capsys)


# ------------------------------------------------------------ artefacts that an earlier stage makes


def _dataset(tree: Tree, manifest: str) -> Path:
    folder = Path(tree["run"]["dir"]) / "dataset"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(manifest, encoding="utf-8")
    return folder


def _manifest(**changed: Any) -> str:
    content = {
        "content_hash": "0" * 64,
        "name": "hand-made",
        "counts": {"users": 2, "items": 2, "events": 4, "train": 4},
        "event_types": ["interact"],
        "ordered": True,
        "timed": False,
        "split": {"kind": "leave-last"},
        "quarantined": {},
        "read": {"events": 4},
        "shards": ["part-00000.parquet"],
        "text": {},
        "timing": {},
        "schema_version": SCHEMA_VERSION,
    }
    return json.dumps(content | changed)


def test_train_without_a_dataset_is_refused(tree: Tree, tmp_path: Path, capsys: Captured) -> None:
    _refused(
        ["train", "--config", _write(tree, tmp_path)],
        ["not a prepared dataset", "recsys prepare"],
        capsys,
    )


def test_damaged_manifest_is_refused(tree: Tree, tmp_path: Path, capsys: Captured) -> None:
    _dataset(tree, "{")
    _refused(
        ["train", "--config", _write(tree, tmp_path)],
        ["manifest.json is damaged", "recsys prepare"],
        capsys,
    )


def test_dataset_of_another_release_is_refused(
    tree: Tree, tmp_path: Path, capsys: Captured
) -> None:
    _dataset(tree, _manifest(schema_version=99))
    _refused(
        ["train", "--config", _write(tree, tmp_path)],
        ["schema version 99", "recsys prepare"],
        capsys,
    )


def test_dataset_without_training_events_is_refused(
    tree: Tree, tmp_path: Path, capsys: Captured
) -> None:
    _dataset(tree, _manifest(counts={"users": 2, "items": 2, "train": 0}))
    _refused(["train", "--config", _write(tree, tmp_path)], ["has no train", "data.split"], capsys)


def test_evaluate_without_a_model_is_refused(tree: Tree, tmp_path: Path, capsys: Captured) -> None:
    _dataset(tree, _manifest())
    _refused(
        ["evaluate", "--config", _write(tree, tmp_path)],
        ["holds no trained model", "recsys train"],
        capsys,
    )


def test_evaluate_with_a_damaged_model_is_refused(
    tree: Tree, tmp_path: Path, capsys: Captured
) -> None:
    _dataset(tree, _manifest())
    model = Path(tree["run"]["dir"]) / "model"
    model.mkdir()
    (model / "trained.json").write_text("{}", encoding="utf-8")
    _refused(
        ["evaluate", "--config", _write(tree, tmp_path)], ["is damaged", "recsys train"], capsys
    )


def test_register_before_evaluate_is_refused(tree: Tree, tmp_path: Path, capsys: Captured) -> None:
    _dataset(tree, _manifest())
    expected = ["metrics.json does not exist", "recsys evaluate"]
    _refused(["register", "--config", _write(tree, tmp_path)], expected, capsys)


def test_recommend_without_a_model_is_refused(tree: Tree, tmp_path: Path, capsys: Captured) -> None:
    _dataset(tree, _manifest())
    _refused(
        ["recommend", "--config", _write(tree, tmp_path)], ["bundle", "recsys register"], capsys
    )


def test_recommend_with_an_unregistered_model_is_refused(
    tree: Tree, tmp_path: Path, capsys: Captured
) -> None:
    _dataset(tree, _manifest())
    words = [
        "recommend",
        "--config",
        _write(tree, tmp_path),
        "--recommend.model",
        "models:/nobody@champion",
    ]
    _refused(words, ["models:/nobody@champion"], capsys)


# --------------------------------------------------------------------- data that cannot be prepared


@pytest.fixture
def events(tree: Tree, tmp_path: Path, ray_local: None) -> Iterator[Path]:
    """A canonical CSV of events, good until a test damages it."""
    path = tmp_path / "events.csv"
    rows = [
        f"u{user},i{item},{1_600_000_000 + 60 * item}" for user in range(8) for item in range(6)
    ]
    path.write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n", encoding="utf-8")
    tree["data"]["source"] = {"kind": "canonical", "events": [str(path)]}
    yield path


def test_missing_data_file_is_refused(
    tree: Tree, tmp_path: Path, events: Path, capsys: Captured
) -> None:
    os.remove(events)
    _refused(["prepare", "--config", _write(tree, tmp_path)], ["events.csv"], capsys)


def test_damaged_row_group_is_refused(
    tree: Tree, tmp_path: Path, events: Path, capsys: Captured
) -> None:
    path = tmp_path / "events.parquet"
    pq.write_table(csv.read_csv(events), path, compression="snappy")
    content = bytearray(path.read_bytes())
    content[4:60] = bytes(byte ^ 0xFF for byte in content[4:60])
    path.write_bytes(content)
    tree["data"]["source"]["events"] = [str(path)]
    expected = ["events.parquet: row group 0", "the file is damaged"]
    _refused(["prepare", "--config", _write(tree, tmp_path)], expected, capsys)


def test_missing_column_is_refused(
    tree: Tree, tmp_path: Path, events: Path, capsys: Captured
) -> None:
    events.write_text("user,item_id\nu1,i1\n", encoding="utf-8")
    _refused(
        ["prepare", "--config", _write(tree, tmp_path)], ["'user_id'", "'user'", "rename"], capsys
    )


def test_empty_table_is_refused(tree: Tree, tmp_path: Path, events: Path, capsys: Captured) -> None:
    events.write_text("user_id,item_id\n", encoding="utf-8")
    _refused(["prepare", "--config", _write(tree, tmp_path)], ["events.csv"], capsys)


def test_too_many_bad_values_are_refused(
    tree: Tree, tmp_path: Path, events: Path, capsys: Captured
) -> None:
    rows = [f"u{user},i{item},{'inf' if item < 2 else 1}" for user in range(8) for item in range(6)]
    events.write_text("\n".join(["user_id,item_id,value", *rows]) + "\n", encoding="utf-8")
    expected = ["value is not a finite number", "data.source.decimal", "data.quarantine.max_share"]
    _refused(["prepare", "--config", _write(tree, tmp_path)], expected, capsys)


def test_temporal_split_without_times_is_refused(
    tree: Tree, tmp_path: Path, events: Path, capsys: Captured
) -> None:
    events.write_text(
        "user_id,item_id\n" + "".join(f"u{u},i{i}\n" for u in range(8) for i in range(6)),
        encoding="utf-8",
    )
    tree["data"]["split"] = {"kind": "temporal"}
    _refused(["prepare", "--config", _write(tree, tmp_path)], ["temporal", "timestamp"], capsys)


def test_given_split_without_split_column_is_refused(
    tree: Tree, tmp_path: Path, events: Path, capsys: Captured
) -> None:
    tree["data"]["split"] = {"kind": "given"}
    _refused(["prepare", "--config", _write(tree, tmp_path)], ["given", "split"], capsys)


def test_histories_too_short_for_leave_last_are_refused(
    tree: Tree, tmp_path: Path, events: Path, capsys: Captured
) -> None:
    events.write_text(
        "user_id,item_id\n" + "".join(f"u{u},i{u}\n" for u in range(8)), encoding="utf-8"
    )
    words = ["prepare", "--config", _write(tree, tmp_path), "--data.order", "file"]
    _refused([*words, "--data.split.kind", "leave-last"], ["leave-last"], capsys)


def test_tag_column_without_tag_events_is_refused(
    tree: Tree, tmp_path: Path, events: Path, capsys: Captured
) -> None:
    tree["data"]["text"] = {"enabled": True, "event_column": "tag"}
    expected = ["data.text.event_types", "data.text.event_column"]
    _refused(["prepare", "--config", _write(tree, tmp_path)], expected, capsys)


@pytest.mark.slow
def test_too_few_cpus_for_the_workers_are_refused(
    tree: Tree, tmp_path: Path, capsys: Captured
) -> None:
    _dataset(tree, _manifest())
    words = [
        "train",
        "--config",
        _write(tree, tmp_path),
        "--ray.num_cpus",
        "2",
        "--train.num_workers",
        "2",
    ]
    _refused(words, ["ray.num_cpus: 2 is too few for train.num_workers 2", "at least 3"], capsys)
