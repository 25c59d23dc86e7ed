"""Paths of the configuration are absolute in a job package and in the configuration of a model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from pipelines.plumbing.inherited import handed_on
from pipelines.plumbing.job_package import job_config
from recsys.config import Config, build_config, dump_config, redacted
from recsys.config.path_keys import path_keys
from recsys.config.shape import is_section, union_members
from recsys.config.sources import path_keys_of_source

# keys whose description names a file or folder, although their value is no path
_NO_PATHS = {
    *("run.name", "data.media.images.column", "data.source.name", "update.follow", "update.idle"),
    *("data.source.rename", "data.source.format", "data.source.columns", "data.source.numbers"),
    *("data.source.separator", "data.source.comment", "data.source.encoding"),
    "data.source.decimal",
    *("data.source.constants", "data.source.item_columns"),
    *("promote.model", "referee.lists", "referee.runs"),  # NAME=FILE, and registered models
}


def _texts(where: str, section: type[BaseModel]) -> Iterator[tuple[str, str, bool]]:
    """Dotted keys that hold texts, with their descriptions and whether the code knows a path."""
    for name, field in section.model_fields.items():
        dotted = f"{where}.{field.alias or name}".lstrip(".")
        inner = [one for one in union_members(field.annotation) if is_section(one)]
        for one in inner:
            yield from _texts(dotted, one)
        if not inner and "str" in str(field.annotation):
            known = dotted in path_keys() or name in path_keys_of_source(section)  # type: ignore[arg-type]
            yield dotted, field.description or "", known


def test_no_key_with_a_path_is_missing() -> None:
    named = re.compile(r"\b(files?|folders?|path|bundle)\b")
    missing = [
        dotted
        for dotted, about, known in _texts("", Config)
        if named.search(about) and not known and dotted not in _NO_PATHS
    ]
    assert missing == [], "annotate them as PathOrUri, or add them to the list above"


def _value(tree: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        tree = tree[part]
    return tree


@pytest.mark.parametrize(
    ("dotted", "value"),
    [
        ("data.source.links", ["l.csv"]),
        ("data.source.lookup", {"order": ["orders.csv"]}),
        ("data.pseudonymise.key_file", "k.key"),
        ("data.media.images.root", "images"),
        ("recommend.out", "o.parquet"),
        ("recommend.model", "runs/a/bundle"),
        ("forget.also", ["logs", "s3://bucket/logs"]),
        ("tracking.artifacts", "art"),
        ("serve.log", "answers"),
        ("serve.ab.model", "pulled"),
        ("run.dir", 2024),
    ],
)
def test_job_package_has_absolute_paths(
    dotted: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = {"kind": "canonical", "events": ["e.csv"]}
    tree: dict[str, Any] = {"data": {"source": source}}
    *sections, last = dotted.split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
    node[last] = value
    words = yaml.safe_dump(_value(yaml.safe_load(job_config(tree)), dotted)).split()
    paths = [word for word in words if not word.endswith(":") and word not in ("-", "...")]
    assert paths and all(path.startswith((str(tmp_path), "s3://")) for path in paths), words


def test_model_stores_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "language-model").mkdir()
    data = {
        "source": {"kind": "canonical", "events": ["a.csv"]},
        "text": {"model": "language-model", "cache_dir": "texts"},
        "media": {"images": {"column": "path", "root": "images", "model": "hub/vit"}},
        "pseudonymise": {"key_file": "k.key"},
    }
    stored = handed_on(build_config({"data": data, "serve": {"log": "logs"}}))
    found = stored["data"]
    assert found["source"]["events"] == [f"{tmp_path}/a.csv"]
    assert found["text"]["model"] == f"{tmp_path}/language-model"
    assert found["text"]["cache_dir"] == f"{tmp_path}/texts"
    assert found["media"]["images"]["root"] == f"{tmp_path}/images"
    assert found["media"]["images"]["model"] == "hub/vit", "no such folder: the id of a hub model"
    assert found["pseudonymise"]["key_file"] == f"{tmp_path}/k.key"
    assert stored["serve"]["log"] == f"{tmp_path}/logs" and stored["serve"]["stock_file"] == ""


def test_path_of_a_key_is_no_secret() -> None:
    config = build_config({"forget": {"signing_key": "/keys/forget.pem"}})
    assert yaml.safe_load(dump_config(redacted(config)))["forget"]["signing_key"] == (
        "/keys/forget.pem"
    )
    sent = job_config({"forget": {"signing_key": "/keys/forget.pem"}})
    assert yaml.safe_load(sent)["forget"]["signing_key"] == "/keys/forget.pem"
