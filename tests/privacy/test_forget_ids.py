"""Forgetting the right users, in a small run folder without a trained model: files of ids, unknown
ids, names in the explanations of others, and the catalogue, which is no trace.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.forget import forget
from pipelines.forgetting.models import forget_lines
from pipelines.plumbing.run_folder import open_run
from recsys.config import build_config
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Histories
from recsys.preparation.blocks import in_this_process
from recsys.privacy.footprints import Id, SearchTargets
from recsys.privacy.proof import search_file
from recsys.privacy.unpacked import Part
from recsys.serving.batch import recommend_all
from recsys.serving.bundles import write_bundle
from tests.handmade import small_model, small_world


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder with a dataset, and recommendations with explanations."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    dataset = small_world(tmp_path / "run" / "dataset")
    write_bundle(tmp_path / "bundle", small_model(dataset), dataset, {})
    target = tmp_path / "run" / "recommendations.parquet"
    recommend_all(tmp_path / "bundle", target, k=4, rules={"explain": True})
    return tmp_path / "run"


def _forget(run: Path, **section: Any) -> dict[str, Any]:
    """Forget the users; returns the proof."""
    tree = {
        "run": {"dir": str(run)},
        "data": {"dir": str(run / "dataset")},
        "tracking": {"enabled": False},
        "forget": section,
    }
    config = build_config(tree)
    with open_run(config, "forget") as folder, in_this_process(_no_session, num_threads=1):
        forget(config, folder)
    (proof,) = (run / "forgotten").glob("proof-*.json")
    found: dict[str, Any] = json.loads(proof.read_text(encoding="utf-8"))
    return found


def _no_session() -> None:
    raise AssertionError("such a small dataset needs no Ray")


def _users(run: Path) -> Sequence[str]:
    return PreparedDataset(str(run / "dataset")).user_ids.to_pylist()


def _naming(run: Path, user: str) -> list[str]:
    """The users whose explanations name a user."""
    rows = pq.read_table(run / "recommendations.parquet").to_pylist()
    return [row["user_id"] for row in rows if f'"{user}"' in (row["explanation"] or "")]


def test_file_of_ids_may_begin_with_a_byte_order_mark(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = run.parent / "ids.txt"
    ids.write_bytes("u0\r\nu1\r\n\r\nu-mistyped\u2028\r\n".encode("utf-8-sig"))
    proof = _forget(run, file=str(ids))
    assert proof["result"] == "nothing found" and not {"u0", "u1"} & set(_users(run))
    shown = capsys.readouterr().out
    assert "1 of the 3 given users are in no dataset, bundle or registered version" in shown


def test_explanations_of_others_do_not_name_a_forgotten_friend(run: Path) -> None:
    path = run / "recommendations.parquet"
    before, named = pq.read_table(path).to_pylist(), _naming(run, "u1")
    (friend,) = set(named) - {"u1"}
    targets = SearchTargets([Id.of("u1", pa.array(_users(run)), pa.array(["i1"]))])
    assert search_file(path, path.name, targets).found

    assert _forget(run, users=["u1"])["result"] == "nothing found"
    after = pq.read_table(path).to_pylist()
    assert not _naming(run, "u1") and not search_file(path, path.name, targets).found
    kept = [row for row in before if row["user_id"] != "u1"]
    cleared = [row for row in kept if '"u1"' in (row["explanation"] or "")]
    assert cleared and {row["user_id"] for row in cleared} == {friend}
    assert after == [{**row, "explanation": None} if row in cleared else row for row in kept]


@pytest.mark.parametrize(
    ("text", "is_there"),
    [
        ('{"friends": [{"user_id": "7", "share": 1.0}]}', True),
        ('{"friends": ["30", "7"]}', True),
        ('{"items": [{"item_id": "7"}], "friends": []}', False),
        ('{"friends": [{"user_id": "17"}], "sentence": "7"}', False),
        ('{"num_users": 7}', False),
        ("Friends 7", False),  # a title
    ],
)
def test_short_id_is_found_in_json_cells_of_any_column(text: str, is_there: bool) -> None:
    targets = SearchTargets([Id.of("7", pa.array(["7", "17", "30"]), pa.array(["x"]))])
    assert ("id" in targets.found_in(Part("cells", [text], "file/explanation"))) == is_there


def test_log_lines_end_only_at_line_breaks(tmp_path: Path) -> None:
    (tmp_path / "run.log").write_text("of user a\u2028b\nof another\n", encoding="utf-8")
    assert forget_lines(tmp_path, lambda line: "a\u2028b" in line) == 1
    assert (tmp_path / "run.log").read_text(encoding="utf-8") == "of another\n"


@pytest.mark.parametrize("items", [[2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2]])
def test_items_in_the_order_of_the_catalogue_are_no_trace(items: list[int], tmp_path: Path) -> None:
    """A user who watched a series in order has a history that the catalogue itself has."""
    films = [f"show-{number}" for number in range(10)]
    pq.write_table(pa.table({"item_id": films, "title": films}), tmp_path / "items.parquet")
    pq.write_table(pa.table({"place": list(range(10))}), tmp_path / "places.parquet")
    others = [9, 1, 8, 0, 5, 3]
    traces = SearchTargets()
    traces.add_history(Histories.of_items([items, others], [0, 1]), [0], films, films)
    for path in tmp_path.iterdir():
        assert not search_file(path, path.name, traces).found
    traces.add_history(Histories.of_items([items, others], [0, 1]), [1], films, films)
    pq.write_table(pa.table({"item_id": [films[n] for n in others]}), tmp_path / "list.parquet")
    assert search_file(tmp_path / "list.parquet", "list", traces).found
