"""Bad search spaces, arguments of jobs, feedback, source settings and files: one message, code 2,
and no files left.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.cli import main
from recsys.errors import UserError
from recsys.serving.feedback import read_feedback
from recsys.sources import open_source
from tests.stories.test_bad_input import Captured, Tree, _write, tree

__all__ = ["tree"]

SPACES: dict[str, tuple[Any, list[str]]] = {
    # name: (content of the file, expected parts of the message)
    "an empty space": ({}, ["expected dotted paths"]),
    "a list": (["train.lr"], ["expected dotted paths", "list"]),
    "an unknown path": (
        {"train.learning_rate": [1, 2]},
        ["train.learning_rate", "unknown path", "lr"],
    ),
    "a path that is refused": (
        {"train.metric": ["ndcg@5", "ndcg@10"]},
        ["train.metric", "cannot vary"],
    ),
    "a path of the data": ({"data.order": ["time", "file"]}, ["data.order", "prepare another"]),
    "the seed": ({"seed": [1, 2]}, ["seed", "tune.seeds"]),
    "a section": ({"train.loss": [{"kind": "bpr"}, 1]}, ["train.loss", "section"]),
    "a value that is refused": ({"train.lr": [0.1, -1]}, ["train.lr", "-1", "greater than 0"]),
    "a repeated value": ({"train.lr": [0.1, 0.1]}, ["train.lr", "twice"]),
    "swapped bounds": (
        {"train.lr": {"uniform": [0.2, 0.1]}},
        ["low < high", "[0.2, 0.1]"],
    ),
    "a bound that is not a number": ({"train.lr": {"uniform": [0.1, "x"]}}, ["low < high"]),
    "three bounds": ({"train.lr": {"uniform": [0.1, 0.2, 0.3]}}, ["[low, high]"]),
    "a log of zero": ({"train.lr": {"loguniform": [0, 0.1]}}, ["above 0"]),
    "an invalid integer": ({"model.width": {"int": [8.5, 16]}}, ["whole numbers"]),
    "a step too large": ({"train.lr": {"uniform": [0.1, 0.2], "step": 1}}, ["step"]),
    "an unknown kind": ({"train.lr": {"normal": [0, 1]}}, ["normal", "uniform"]),
    "two kinds": ({"train.lr": {"uniform": [0.1, 0.2], "choice": [1]}}, ["expected one of"]),
    "an empty choice": ({"train.lr": []}, ["train.lr", "list of values"]),
    "nothing varies": ({"train.lr": 0.1}, ["vary nothing"]),
    "a number as path": ({1: [1, 2]}, ["not a dotted path"]),
}
RAW_SPACES = {
    "a space that is not YAML": (b"train.lr: [1", ["not valid YAML"]),
    "a space that is not text": (b"\xff\xfe\x00", ["not valid YAML"]),
    "a repeated path in a space": (b"train.lr: [1, 2]\ntrain.lr: [3, 4]\n", ["occurs twice"]),
    "an impossible date in a space": (b"train.lr: [2020-13-45, 1]\n", ["not valid YAML", "month"]),
    "a space that contains itself": (b"train.lr: &a [*a, 1]\n", ["train.lr"]),
}


def refused(words: list[str], expected: list[str], capsys: Captured, folder: Path) -> None:
    """Code 2, one message that contains all of ``expected``, and an unchanged folder."""
    before = sorted(folder.rglob("*"))
    capsys.readouterr()
    code = main(words)
    out, err = capsys.readouterr()
    assert code == 2, err
    assert out == "" and err.count("recsys: ") == 1 and "Traceback" not in err
    for part in expected:
        assert part in err, f"{part!r} is not in {err!r}"
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", [*SPACES, *RAW_SPACES])
def test_bad_sweep_spaces_are_refused(
    name: str, tree: Tree, tmp_path: Path, capsys: Captured
) -> None:
    content, expected = {**SPACES, **RAW_SPACES}[name]
    space = tmp_path / "space.yaml"
    space.write_bytes(content if isinstance(content, bytes) else yaml.safe_dump(content).encode())
    words = [
        "tune",
        "--config",
        _write(tree, tmp_path),
        "--tune.space",
        f"[{space}]",
        "--dry-run",
    ]
    refused(words, expected, capsys, tmp_path)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["tune", "--config", "CONFIG", "--tune.space", "[nowhere.yaml]", "--dry-run"],
            ["nowhere.yaml", "shipped"],
        ),
        (["tune", "--config", "CONFIG", "--dry-run"], ["tune.space", "no search space"]),
        (["submit"], ["expected a verb", "train"]),
        (["submit", "trian", "--config", "CONFIG"], ["'trian'", "train"]),
        (["submit", "train"], ["--config FILE is missing"]),
        (["submit", "stop"], ["submit"]),
        (["train", "--config", "CONFIG", "--seed", "!!int x"], ["--seed", "not a YAML value"]),
        (["train", "--config", "CONFIG", "--seed", "&a [*a]"], ["contains itself"]),
        (["train", "--config", "CONFIG", "--seed", "2020-13-45"], ["--seed", "month"]),
        (["train", "--config", "CONFIG", "--train.lr", ".nan"], ["train.lr"]),
        (["train", "--config", "CONFIG", "--.lr", "1"], ["unknown key"]),
        (["train", "--config", "CONFIG", "--train..lr", "1"], ["unknown key"]),
        (["train", "--config", "CONFIG", "--resume=yes"], ["takes no value"]),
        (["train", "--config", "FOLDER"], ["does not exist"]),
    ],
    ids=lambda value: (
        " ".join(value)
        if isinstance(value, list) and value[0] in ("tune", "submit", "train")
        else ""
    ),
)
def test_bad_arguments_are_refused(
    words: list[str], expected: list[str], tree: Tree, tmp_path: Path, capsys: Captured
) -> None:
    path = _write(tree, tmp_path)
    given = [{"CONFIG": path, "FOLDER": str(tmp_path)}.get(word, word) for word in words]
    refused(given, expected, capsys, tmp_path)


EVENTS = "user_id,item_id,event_type\nu,i,buy\n"


@pytest.mark.parametrize(
    ("content", "rewards", "says"),
    [
        (None, {"buy": 1.0}, "expected files"),
        (EVENTS, {"buy": 0.0}, "must be a finite number other than 0"),
        (EVENTS, {"buy": float("nan")}, "must be a finite number other than 0"),
        (EVENTS, {"view": 1.0}, "no reward for the event type 'buy'"),
        ("user_id,item_id\n", {"interact": 1.0}, "only a header"),
        ("user_id,item_id\nu,\n", {"interact": 1.0}, "rows are bad"),
        ("user_id,item_id,history\nu,i,a b\n", {"interact": 1.0}, "expected lists of item ids"),
        ("user_id\nu\n", {"interact": 1.0}, "lacks 'item_id'"),
    ],
)
def test_bad_feedback_is_refused(
    content: str | None, rewards: dict[str, float], says: str, tmp_path: Path
) -> None:
    (tmp_path / "feedback.csv").write_text(content or "", encoding="utf-8")
    files = [] if content is None else [str(tmp_path / "feedback.csv")]
    with pytest.raises(UserError, match=says):
        read_feedback(files, rewards, 0.01)
    assert [path.name for path in tmp_path.iterdir()] == ["feedback.csv"]


@pytest.mark.parametrize(
    ("name", "content", "more", "says"),
    [
        ("e.csv", b"", {}, "is empty"),
        ("e.xlsx", b"PK\x03\x04", {}, "cannot tell the format"),
        ("e.csv", b"\xff\xfeu\x00", {}, "utf-16"),
        ("e.csv", b"PAR1", {}, "Parquet"),
        ("e.parquet", b"user_id,item_id\nu,i\n", {}, "not a Parquet file"),
        ("e.jsonl", b"[1]\n", {}, "no JSON object"),
        ("e.csv", b"user_id;item_id|x\nu;i|y\n", {}, "data.source.separator"),
        ("e.csv", b"user_id,item_id,user_id\nu,i,v\n", {}, "twice"),
        ("e.csv", b"user_id,item_id,_row\nu,i,v\n", {}, "reserved"),
        ("e.csv", b"user_id,item_id\nu,i\n", {"encoding": "utf-16"}, "not ASCII-compatible"),
        ("e.csv", b"user_id,item_id\nu,i\n", {"encoding": "klingon"}, "unknown"),
        ("e.csv", b"user_id,item_id\nu,i\n", {"rename": {"uid": "user_id"}}, "which no file has"),
        ("e.csv.gz", b"user_id,item_id\nu,i\n", {}, "gzip"),
    ],
)
def test_bad_sources_are_refused(
    name: str, content: bytes, more: dict[str, Any], says: str, tmp_path: Path
) -> None:
    from recsys.config import CanonicalSource

    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        open_source(CanonicalSource(events=[str(tmp_path / name)], **more)).pieces()
    assert [path.name for path in tmp_path.iterdir()] == [name]
