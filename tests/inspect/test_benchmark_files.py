"""`recsys init`: the files of benchmark repositories, with their splits; one property each."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.errors import SourceError
from recsys.inspect.look import Look, look
from recsys.sources import open_source
from recsys.sources.base import read_all
from tests.inspect.test_public_forms import (
    NUM_ITEMS,
    NUM_USERS,
    START,
    source_of,
    triples,
    write,
)


def events() -> list[tuple[int, int, int]]:
    """Users, items and times (seconds), by user and time."""
    return sorted(triples(), key=lambda row: (row[0], row[2]))


def parts() -> dict[str, list[tuple[int, int, int]]]:
    """The events by split: the last event of each user is test, the one before it valid."""
    found: dict[str, list[tuple[int, int, int]]] = {"train": [], "valid": [], "test": []}
    rows = events()
    for n, row in enumerate(rows):
        later = sum(other[0] == row[0] for other in rows[n + 1 :])
        found[("test", "valid")[later] if later < 2 else "train"].append(row)
    return found


def splits(found: Look) -> Counter[str]:
    """The number of events of each split, as the reader of the source gives them."""
    rows = read_all(open_source(found.config.data.source).pieces()["events"])
    assert found.config.data.split.kind == "given"
    return Counter(rows["split"].to_pylist())


def recbole(folder: Path, columns: Sequence[str], rows: dict[str, list[tuple[Any, ...]]]) -> None:
    folder.mkdir()
    for part, of_part in rows.items():
        write(folder / f"toy.{part}.inter", [columns, *of_part], "\t")


def test_benchmark_files_of_recbole_are_one_data_set_with_its_split(tmp_path: Path) -> None:
    columns = ["user_id:token", "item_id:token", "timestamp:float"]
    recbole(tmp_path / "toy", columns, parts())  # type: ignore[arg-type]
    items = [("item_id:token", "kind:token_seq"), *((i, "a b") for i in range(1, NUM_ITEMS + 1))]
    write(tmp_path / "toy" / "toy.item", items, "\t")
    found = look([str(tmp_path / "toy")])
    assert splits(found) == Counter({part: len(rows) for part, rows in parts().items()})
    assert found.found.has_items and not found.found.ignored


def test_growing_histories_of_recbole_say_the_order(tmp_path: Path) -> None:
    rows: dict[str, list[tuple[Any, ...]]] = {}
    seen: dict[int, list[str]] = defaultdict(list)
    place = {row: part for part, of_part in parts().items() for row in of_part}
    for row in events():
        if seen[row[0]]:
            history = " ".join(seen[row[0]])
            rows.setdefault(place[row], []).append((row[0], history, row[1]))
        seen[row[0]].append(str(row[1]))
    recbole(tmp_path / "toy", ["user_id:token", "item_id_list:token_seq", "item_id:token"], rows)
    found = look([str(tmp_path / "toy")])
    assert found.config.data.order == "file" and splits(found)["test"] == NUM_USERS


@pytest.mark.parametrize(
    "names",
    [
        {"train": ["trainset.txt"], "test": ["testset.txt"]},
        {"train": ["trn.txt"], "valid": ["val.txt"], "test": ["tst.txt"]},
        {"train": ["train.txt"], "test": ["valid.txt"]},
        {
            "train": ["train.txt", "validation_tr.txt", "test_tr.txt"],
            "valid": ["validation_te.txt"],
            "test": ["test_te.txt"],
        },
    ],
)
def test_names_of_files_say_their_splits(names: dict[str, list[str]], tmp_path: Path) -> None:
    rows, count = events(), sum(map(len, names.values()))
    for n, name in enumerate(name for of_split in names.values() for name in of_split):
        write(tmp_path / name, [(*row[:2], 1) for row in rows[n::count]], " ")
    source = source_of(look([str(tmp_path)]))
    found = {
        split: {Path(file).name for file in files} for split, files in source.split_files.items()
    }
    assert found == {split: {*files} for split, files in names.items()}


@pytest.mark.parametrize(
    ("name", "is_split"), [("x_label", True), ("x_label", False), ("split", True)]
)
def test_numbers_of_splits_are_the_split(name: str, is_split: bool, tmp_path: Path) -> None:
    codes = {row: code for code, rows in enumerate(parts().values()) for row in rows}
    if name == "split":  # of all users at one time
        codes = {
            row: (row[2] > START + 70 * 86_400) + (row[2] > START + 80 * 86_400) for row in codes
        }
    if not is_split:  # the label of an event, such as its mood
        codes = {row: (0, 0, 0, 1, 2)[row[2] % 5] for row in codes}
    rows = [(*row, codes[row]) for row in events()]
    path = write(tmp_path / "toy.inter", [("userID", "itemID", "timestamp", name), *rows], "\t")
    found = look([path])
    assert (found.config.data.split.kind == "given") == is_split
    if is_split:
        words = dict(enumerate(("train", "valid", "test")))
        assert splits(found) == Counter(words[code] for code in codes.values())


def test_colon_after_the_user_is_not_a_part_of_it(tmp_path: Path) -> None:
    lines: dict[int, str] = {}
    for user, item, _ in events():
        lines[user] = f"{lines[user]} {item}" if user in lines else f"{user}:{item}"
    path = write(tmp_path / "train.txt", [[line] for line in lines.values()])
    with pytest.raises(SourceError, match=r"'1:\d+'.*USER ITEM ITEM.*sed"):
        look([path])
    (tmp_path / "test.txt").write_text("".join(f"{user}:{user}\n" for user in lines))
    with pytest.raises(SourceError, match="a colon between the user and the first item"):
        look([str(tmp_path / "test.txt")])


def test_cells_of_nested_features_are_refused(tmp_path: Path) -> None:
    rows = [(n, u % 2, f"{u:x}f", f"301\x02{i}\x031.0") for n, (u, i, _) in enumerate(events())]
    with pytest.raises(SourceError, match="lists of features.*a row per event"):
        look([write(tmp_path / "sample_skeleton_train.csv", rows)])


def in_order(kind: str) -> list[tuple[int, int]]:
    """Users and items of walks along a ring of items, in this or in another order."""
    random = np.random.default_rng(0)
    rows: list[tuple[int, int]] = []
    for user in range(400):
        steps = random.choice([1, 1, 1, -1, 7], 12)
        items = list(dict.fromkeys(((random.integers(60) + np.cumsum(steps)) % 60).tolist()))
        if kind == "shuffled":
            random.shuffle(items)
        if kind == "sorted":  # by a name, so one order of all items
            items.sort(key=lambda item: item * 37 % 61)
        rows += [(user, item) for item in items]
    return rows


@pytest.mark.parametrize("kind", ["walks", "shuffled", "sorted"])
def test_neighbours_tell_whether_rows_are_in_order_of_time(kind: str, tmp_path: Path) -> None:
    found = look([write(tmp_path / "ml-1m.txt", in_order(kind), " ")])
    is_ordered = kind == "walks"
    assert found.config.data.order == ("file" if is_ordered else "none")
    assert found.config.data.split.kind == ("leave-last" if is_ordered else "ratio")


def test_rows_sorted_by_their_counts_are_in_no_order_of_time(tmp_path: Path) -> None:
    rows = [(user, item, 500 - n % 12 * 9) for n, (user, item) in enumerate(in_order("walks"))]
    rows = sorted(rows, key=lambda row: (row[0], -row[2]))
    assert look([write(tmp_path / "plays.txt", rows, " ")]).config.data.order == "none"


def test_numbers_at_the_end_of_codes_are_no_other_form_of_ids(tmp_path: Path) -> None:
    lines: dict[int, list[int]] = {}
    for user, item, _ in events():
        lines.setdefault(user, [user]).append(item)
    path = write(tmp_path / "sequential_data.txt", lines.values(), " ")
    titles = [("asin", "title"), *((f"B{n:x}X{n % 50}", f"Title of {n}") for n in range(90, 300))]
    meta = write(tmp_path / "meta.csv", titles)
    assert look([path, meta]).found.ignored[meta] == "no ids in common with the events"


def test_sessions_with_history_and_last_item_in_a_row_are_refused_with_the_cure(
    tmp_path: Path,
) -> None:
    lines: dict[int, list[int]] = {}
    for user, item, _ in events():
        lines.setdefault(user, []).append(item)
    rows = [
        (f"s{user}-{n}", " ".join(map(str, items[:n])), items[n])
        for user, items in lines.items()
        for n in range(1, len(items))
    ]
    columns = ("session_id:token", "item_id_list:token_seq", "item_id:token")
    path = write(tmp_path / "train.tsv", [columns, *rows], "\t")
    with pytest.raises(SourceError, match=r"awk -F '\\t' 'NR > 1 \{print \$1, \$2, \$3\}'"):
        look([path])


@pytest.mark.parametrize("key", ["locale", "session_id"])
def test_sessions_with_lists_as_numpy_prints_them_lead_to_lines_of_items(
    key: str, tmp_path: Path
) -> None:
    """Without a column of sessions the rows need a number: three countries are no users."""
    rows = []
    for user in range(250):
        items = [f"B{(user * 7 + n * 11) % 40:09}" for n in range(2 + user % 5)]
        written = " ".join(map(repr, items[:-1])).replace(" 'B000000003", "\n 'B000000003")
        rows.append((f"[{written}]", items[-1], ("DE", "JP", "UK")[user % 3], f"s{user}"))
    columns, is_numbered = ["prev_items", "next_item", key], key == "session_id"
    path = tmp_path / "sessions.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *((*row[:2], row[2 + is_numbered]) for row in rows)])
    with pytest.raises(SourceError, match="sequences.txt") as caught:
        look([str(path)])
    assert ("locale has only 3 values, such as DE" in str(caught.value)) is not is_numbered
    found = re.search(r"python -c '(.*)' > sequences.txt", str(caught.value))
    assert found is not None
    command = [sys.executable, "-c", found[1]]
    lines = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    path = tmp_path / "sequences.txt"
    path.write_text(lines)
    assert look([str(path)]).found.statistics.num_events == sum(
        len(re.findall("B", prev)) + 1 for prev, *_ in rows
    ), "the cure works"


def test_lists_as_numpy_prints_them_are_events(tmp_path: Path) -> None:
    lines: dict[int, list[int]] = {}
    for user, item, _ in events():
        lines.setdefault(user, []).append(item)
    rows = [(user, f"[{' '.join(map(str, items))}]") for user, items in lines.items()]
    path = write(tmp_path / "sessions.csv", [("session_id", "items"), *rows])
    config = look([path]).config
    assert config.data.source.lists == {"items": " "}  # type: ignore[union-attr]
    assert read_all(open_source(config.data.source).pieces()["events"]).num_rows == len(events())


def test_few_users_without_the_name_of_users_have_a_note(tmp_path: Path) -> None:
    rows = [(("DE", "JP", "UK")[user % 3], item, time) for user, item, time in events()]
    for name in ("locale", "user"):
        found = look([write(tmp_path / f"{name}.csv", [(name, "item_id", "time"), *rows])]).found
        note = "the users are the 3 values of locale, such as JP; if they are no users"
        assert any(said.startswith(note) for said in found.notes) is (name == "locale")


def test_fields_of_recbole_with_other_names_are_users_items_and_values(tmp_path: Path) -> None:
    columns = ["session_id:token", "artist_id:token", "weight:float", "tag:token_seq"]
    rows = [(u, i, u + i, "pop") for u, i, _ in events()]
    (tmp_path / "toy").mkdir()
    write(tmp_path / "toy" / "toy.inter", [columns, *rows], "\t")
    names = [(i, f"Name of {i}") for i in range(1, NUM_ITEMS + 1)]
    write(tmp_path / "toy" / "toy.item", [("artist_id:token", "name:token_seq"), *names], "\t")
    found = look([str(tmp_path / "toy")])
    read = read_all(open_source(found.config.data.source).pieces()["events"])
    assert read["value"].to_pylist() == [u + i for u, i, _ in events()]
    assert found.found.has_items and found.config.data.text.fields == ["name"]


def test_label_of_recbole_leaves_out_what_was_only_shown(tmp_path: Path) -> None:
    columns = ["user_id:token", "item_id:token", "label:float", "timestamp:float"]
    rows = [(u, i, n % 3 // 2, t) for n, (u, i, t) in enumerate(events())]
    (tmp_path / "toy").mkdir()
    write(tmp_path / "toy" / "toy.inter", [columns, *rows], "\t")
    found = look([str(tmp_path / "toy")])
    assert found.config.data.min_value == 1.0
    assert found.found.statistics.num_events == sum(row[2] for row in rows)


@pytest.mark.parametrize("has_names", [True, False])
def test_one_purchase_of_each_session_is_no_attribute_of_it(
    has_names: bool, tmp_path: Path
) -> None:
    rows = [
        (n // 4 + 500, i + 9000, np.datetime64(START + n * 60, "s"), 0)
        for n, (_, i, _) in enumerate(events())
    ]
    last = {row[0]: (*row[:3], 900, 1) for row in rows}
    names = ("session", "item_id", "time", "category", "pieces")
    paths = [
        write(tmp_path / name, [*[names[: len(of_file[0])]] * has_names, *of_file])
        for name, of_file in (("clicks.dat", rows), ("buys.dat", [*last.values()]))
    ]
    found = look(paths)
    source = source_of(found)
    assert source.users == []
    if has_names:
        assert source.type_files == {"buy": paths[1:], "click": paths[:1]}
    else:
        assert source.events == paths[:1]
        assert "events" in found.found.ignored[paths[1]]


def test_extract_with_another_name_is_no_event_type(tmp_path: Path) -> None:
    """The extract comes first, and more of its users have one event."""
    rows: list[tuple[object, ...]] = [("user_id", "movie_id", "timestamp", "click")]
    rows += [(*row, int(n % 4 > 0)) for n, row in enumerate(events())]
    paths = [write(tmp_path / "a_1M.csv", [rows[0], *rows[1::5]])]
    paths.append(write(tmp_path / "video.csv", rows))
    found = look(paths)
    assert source_of(found).events == paths[1:] and not source_of(found).type_files
    assert "an extract" in found.found.ignored[paths[0]]


def test_parts_of_the_training_file_are_extracts_of_it(tmp_path: Path) -> None:
    of_part = parts()
    files = {
        "rsc15_train_full.txt": [*of_part["train"], *of_part["valid"]],
        "rsc15_train_tr.txt": of_part["train"],
        "rsc15_train_valid.txt": of_part["valid"],
        "rsc15_test.txt": of_part["test"],
    }
    names = ("SessionId", "ItemId", "Time")
    for name, rows in files.items():
        write(tmp_path / name, [names, *rows], "\t")
    found = look([str(tmp_path)])
    assert splits(found) == Counter({"train": 950, "test": 50}) and len(found.found.ignored) == 2
    (tmp_path / "rsc15_train_full.txt").unlink()
    assert splits(look([str(tmp_path)])) == Counter({"train": 900, "valid": 50, "test": 50})
