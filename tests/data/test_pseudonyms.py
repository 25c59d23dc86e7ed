"""`data.pseudonymise`: no artefact contains an id or the key, and requests by id work with the
key.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from pipelines.cli import main
from recsys.config import build_config, load_config
from recsys.config.privacy import PseudonymConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.pseudonyms import Pseudonyms, pseudonym_lookup
from recsys.errors import ConfigError
from recsys.preparation.prepare import prepare
from recsys.serving.bundles import read_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_requests
from tests.training_here import training_here

Captured = pytest.CaptureFixture[str]
KEY = "a secret that is long enough to be one"


def _write(folder: Path, pseudonyms: bool) -> Path:
    _set_key(folder, KEY)
    rows = [
        f"ann{u}@mail.test,i{(u + 3 * p) % 17},{1_600_000_000 + 90_000 * p}"
        for u in range(40)
        for p in range(8)
    ]
    (folder / "events.csv").write_text(
        "\n".join(["user_id,item_id,timestamp", *rows, "ann3@mail.test,,7"])
    )
    (folder / "friends.csv").write_text("src_user_id,dst_user_id\nann1@mail.test,ann2@mail.test\n")
    tree: dict[str, Any] = {
        "run": {"dir": str(folder / "run")},
        "data": {
            "source": {
                "kind": "canonical",
                "events": [str(folder / "events.csv")],
                "social": [str(folder / "friends.csv")],
            },
            "text": {"enabled": False},
            **(
                {"pseudonymise": {"key_file": str(folder / "key" / "of-shop")}}
                if pseudonyms
                else {}
            ),
        },
        "model": {"item": {"text": False}, "granularities": {"item_knn": {"enabled": True}}},
        "train": {"metric": "ndcg@5", "threads": 1},
        "evaluate": {"ks": [5], "baselines": ["popularity"], "bootstrap": 100, "num_examples": 40},
        "registry": {"name": "shop"},
    }
    path = folder / "shop.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def _set_key(folder: Path, key: str) -> None:
    (folder / "key").mkdir(exist_ok=True)
    (folder / "key" / "of-shop").write_text(key + "\n")


def _content(root: Path) -> bytes:
    """All bytes of a folder and the cells of its tables."""
    found = b""
    for path in sorted(one for one in root.rglob("*") if one.is_file()):
        found += path.read_bytes()
        found += str(pq.read_table(path).to_pydict()).encode() if path.suffix == ".parquet" else b""
    return found


def test_artefacts_contain_pseudonyms_and_the_key_finds_users(
    tmp_path: Path,
    ray_local: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = _write(tmp_path, pseudonyms=True)
    with training_here():
        assert main(["run", "--config", str(path)]) == 0
    for place in (tmp_path / "run", tmp_path / "mlartifacts", tmp_path / "mlflow.db"):
        content = _content(place) if place.is_dir() else place.read_bytes()
        assert content and b"mail.test" not in content and KEY.encode() not in content
    shown = capsys.readouterr()
    assert "mail.test" not in shown.out + shown.err and KEY not in shown.out + shown.err

    row = {"user_id": "ann7@mail.test", "k": 3}
    with_key = Recommender(read_bundle(tmp_path / "run" / "bundle"))
    pseudonym = Pseudonyms(KEY.encode()).of_id("ann7@mail.test")
    by_id, by_pseudonym = with_key.recommend(parse_requests([row, {**row, "user_id": pseudonym}]))
    assert (
        by_id.source == "model"
        and by_id.item_ids == by_pseudonym.item_ids
        and by_id.user_id == row["user_id"]
    )
    _set_key(tmp_path, KEY + " no more")
    with caplog.at_level(logging.WARNING):
        (without,) = Recommender(read_bundle(tmp_path / "run" / "bundle")).recommend(
            parse_requests([row])
        )
    assert (
        without.source == "popularity"
        and "the key is a different one" in caplog.text
        and KEY not in caplog.text
    )

    _set_key(tmp_path, KEY)
    assert main(["forget", "--config", str(path), "--user", "ann7@mail.test"]) == 0
    proof = json.loads(next((tmp_path / "run" / "forgotten").glob("*.json")).read_text())
    assert proof["looked_for"]["ids"] == 2 and proof["result"] == "nothing found", (
        "the id and its pseudonym"
    )
    (after,) = Recommender(read_bundle(tmp_path / "run" / "bundle")).recommend(
        parse_requests([row])
    )
    assert after.source == "popularity"


def test_dataset_changes_with_the_key_and_a_missing_key_is_refused(
    tmp_path: Path, ray_local: None
) -> None:
    config = load_config(_write(tmp_path, pseudonyms=True))
    _set_key(tmp_path, "short")
    with pytest.raises(ConfigError, match="of-shop has 5 bytes, expected a secret of at least 16"):
        prepare(config, progress=lambda _: None)
    hashes = []
    for key in (KEY, KEY, KEY.upper()):
        _set_key(tmp_path, key)
        hashes.append(prepare(config, progress=lambda _: None).manifest.content_hash)
    assert hashes[0] == hashes[1] != hashes[2]
    raw = PreparedDataset(config.dataset_dir).table("quarantine/events.parquet")
    assert raw.num_rows == 1 and "ann" not in str(raw.to_pydict()["raw"])


def test_ids_like_email_addresses_give_a_warning(tmp_path: Path, ray_local: None) -> None:
    dataset = prepare(load_config(_write(tmp_path, pseudonyms=False)), progress=lambda _: None)
    assert any(
        "40 of the first 40 user ids look like e-mail" in note for note in dataset.manifest.notes
    )


def test_two_locations_of_the_key_are_refused() -> None:
    with pytest.raises(ConfigError, match="both say where the key is"):
        build_config({"data": {"pseudonymise": {"key_env": "A", "key_file": "b"}}})
    with pytest.raises(ConfigError, match="key_env"):
        build_config({"data": {"pseudonymise": {"key_env": "$$A"}}})
    assert Pseudonyms.of(PseudonymConfig()) is None and pseudonym_lookup({})("x") == "x"


def test_key_is_trimmed_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_KEY", KEY)
    assert Pseudonyms.of(PseudonymConfig(key_env="SHOP_KEY")) == Pseudonyms(KEY.encode())
    monkeypatch.delenv("SHOP_KEY")
    with pytest.raises(ConfigError, match="the variable SHOP_KEY has 0 bytes"):
        Pseudonyms.of(PseudonymConfig(key_env="SHOP_KEY"))
    (tmp_path / "key").write_text(KEY + "\n")
    found = Pseudonyms.of(PseudonymConfig(key_file=str(tmp_path / "key")))
    assert (
        found is not None
        and found.of_id("a") == Pseudonyms(KEY.encode()).of_id("a")
        and KEY not in repr(found)
    )
    with pytest.raises(ConfigError, match="cannot be read"):
        Pseudonyms.of(PseudonymConfig(key_file=str(tmp_path / "none")))
