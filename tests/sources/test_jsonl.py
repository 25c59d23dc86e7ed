"""JSON: ids keep all digits, unsuitable values are reported, arrays are read, odd files give one
message.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from recsys import schema
from recsys.config import CanonicalSource
from recsys.errors import SourceError
from recsys.sources import jsonl, open_source
from recsys.sources.base import read_all

BIG = 1234567890123456001


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def events(path: str, **options: Any) -> pa.Table:
    return read_all(open_source(CanonicalSource(events=[path], **options)).pieces()["events"])


def users(table: pa.Table) -> list[str | None]:
    return table.column(schema.USER_ID).to_pylist()


def bad(table: pa.Table) -> list[tuple[int, str]]:
    rows = table.filter(pc.is_valid(table.column(schema.REASON))).to_pylist()
    return [(row[schema.ROW], row[schema.REASON]) for row in rows]


def error_of(path: str) -> str:
    with pytest.raises(SourceError) as caught:
        events(path)
    return str(caught.value)


def lines(ids: list[str], key: str = "user_id") -> str:
    return "".join(f'{{"{key}": {text}, "item_id": "i"}}\n' for text in ids)


@pytest.mark.parametrize(
    ("odd", "read_as"),
    [
        ("NaN", None),
        ("null", None),
        ("Infinity", None),
        (f'"{BIG}"', str(BIG)),
        (f"{BIG}.0", str(BIG)),
        ("12.0", "12"),
        ("1e5", "100000"),
        ("2.50", "2.5"),
        ("18446744073709551615", "18446744073709551615"),
        ('"a b"', "a b"),
        ("true", "true"),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_one_odd_id_leaves_the_others_exact(
    odd: str, read_as: str | None, is_first: bool, tmp_path: Path
) -> None:
    plain = [str(BIG + n) for n in range(40)]
    given = [odd, *plain] if is_first else [*plain, odd]
    expected = [read_as, *plain] if is_first else [*plain, read_as]
    assert users(events(write(tmp_path / "e.jsonl", lines(given)))) == expected


@pytest.mark.parametrize("odd", ["NaN", f'"{BIG}"', "1.5"])
def test_type_that_changes_after_the_head_loses_no_digit(
    odd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "_HEAD_BYTES", 200)
    monkeypatch.setattr(jsonl, "_FIRST_BYTES", 200)
    monkeypatch.setattr(jsonl, "_SAMPLES", 0)
    plain = [str(BIG + n) for n in range(40)]
    table = events(write(tmp_path / "e.jsonl", lines([*plain, odd, *plain])))
    assert users(table)[:40] == users(table)[41:] == plain


def test_renamed_ids_and_ids_of_other_columns_are_exact(tmp_path: Path) -> None:
    rows = [
        f'{{"u": {BIG}, "i": {BIG + 1}, "event_type": {BIG + 2}}}',
        '{"u": NaN, "i": "x", "event_type": 1.0}',
    ]
    table = events(
        write(tmp_path / "e.jsonl", "\n".join(rows)), rename={"u": "user_id", "i": "item_id"}
    )
    assert users(table) == [str(BIG), None]
    assert table.column(schema.ITEM_ID).to_pylist() == [str(BIG + 1), "x"]
    assert table.column(schema.EVENT_TYPE).to_pylist() == [str(BIG + 2), "1"]


def test_keys_in_texts_and_in_inner_objects_are_other_columns(tmp_path: Path) -> None:
    rows = [
        {
            "user_id": 1,
            "item_id": "i",
            "note": 'says "user_id": 5, "item_id": 6',
            "more": {"user_id": 7},
        },
        {"user_id": "2", "item_id": 3, "note": "x", "more": {"user_id": 8}},
    ]
    table = events(write(tmp_path / "e.jsonl", "\n".join(map(json.dumps, rows))))
    assert users(table) == ["1", "2"]
    assert table.column("note").to_pylist()[0] == rows[0]["note"]
    assert table.column("more.user_id").to_pylist() == [7, 8]


def test_integers_of_other_columns_keep_their_digits_next_to_floats(tmp_path: Path) -> None:
    rows = [f'{{"user_id": "u", "item_id": "i", "shop": {BIG}, "price": 1, "seller": {BIG}}}']
    rows += ['{"user_id": "u", "item_id": "i", "shop": 0.5, "price": 2.5, "seller": NaN}']
    table = events(write(tmp_path / "e.jsonl", "\n".join(rows)))
    assert table.column("shop").to_pylist() == [str(BIG), "0.5"]
    assert table.column("seller").to_pylist() == [BIG, None]
    assert table.column("price").to_pylist() == [1.0, 2.5]


def test_known_columns_are_found_after_the_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "_HEAD_BYTES", 200)
    monkeypatch.setattr(jsonl, "_FIRST_BYTES", 200)
    monkeypatch.setattr(jsonl, "_SAMPLES", 0)
    late = (
        '{"user_id": "u", "item_id": "i", "timestamp": 1600000000, "event_type": 7, "value": 2}\n'
    )
    table = events(write(tmp_path / "e.jsonl", lines(['"u"'] * 40) + late))
    last = table.slice(40).to_pylist()[0]
    assert (last["event_type"], last["value"], last["timestamp"].year) == ("7", 2.0, 2020)


def test_other_columns_are_found_all_over_a_plain_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "_HEAD_BYTES", 1000)
    monkeypatch.setattr(jsonl, "_FIRST_BYTES", 500)
    monkeypatch.setattr(jsonl, "_SAMPLE_BYTES", 100)
    more = '{"user_id": "u", "item_id": "i", "device": "tv"}\n' * 20
    table = events(write(tmp_path / "e.jsonl", lines(['"u"'] * 80) + more))
    assert table.column("device").to_pylist()[-20:] == ["tv"] * 20


def test_value_that_does_not_fit_its_column_makes_a_bad_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "_HEAD_BYTES", 100)
    monkeypatch.setattr(jsonl, "_FIRST_BYTES", 100)
    monkeypatch.setattr(jsonl, "_SAMPLES", 0)
    values = ["1"] * 10 + ['"7"', "NaN", "null", '"NA"', '"cheap"', "2.5"]
    rows = "".join(f'{{"user_id": "u", "item_id": "i", "price": {value}}}\n' for value in values)
    table = events(write(tmp_path / "e.jsonl", rows))
    assert bad(table) == [(15, "unreadable row"), (16, "unreadable row")]
    assert table.column("price").to_pylist()[10:] == [7, None, None, None, None, None]
    assert '"cheap"' in table.column(schema.RAW).to_pylist()[14]


@pytest.mark.parametrize("name", ["e.json", "e.json.gz"])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_array_of_objects_is_a_table(
    name: str, indent: int | None, mark: str, tmp_path: Path
) -> None:
    rows = [
        {"user_id": BIG + n, "item_id": f"é{n}", "timestamp": 1_600_000_000 + n} for n in range(50)
    ]
    content = (mark + json.dumps(rows, indent=indent, ensure_ascii=False)).encode()
    table = events(
        write(tmp_path / name, gzip.compress(content) if name.endswith("gz") else content)
    )
    assert users(table) == [str(BIG + n) for n in range(50)]
    assert table.column(schema.ROW).to_pylist() == list(range(1, 51))


def test_objects_over_several_lines_are_a_table(tmp_path: Path) -> None:
    rows = [{"user_id": BIG + n, "item_id": "i", "more": [{"a": n}]} for n in range(5)]
    table = events(write(tmp_path / "e.json", "\n".join(json.dumps(row, indent=1) for row in rows)))
    assert users(table) == [str(BIG + n) for n in range(5)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('[{"user_id": 1, "item_id": 2}, {"user_id": 1', "element 2 is not JSON, or the end"),
        ('[{"user_id": 1, "item_id": 2},', "element 2"),
        ('[{"user_id": 1, "item_id": 2}, oops, {"user_id": 1, "item_id": 2}]', "element 2"),
        ("[]", "no JSON object"),
        ("[1, 2]", "no JSON object"),
        ("{'user_id': 1, 'item_id': None}\n", "Python literals"),
        ('{"user_id": 1}\n', "lacks 'item_id'"),
        ("[" * 100_000, "no JSON object"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "no JSON object|is not JSON"),
    ],
)
def test_odd_json_gives_one_message(content: str, says: str, tmp_path: Path) -> None:
    path = write(tmp_path / "e.json", content)
    with pytest.raises(SourceError, match=says):
        events(path)


def test_broken_elements_of_an_array_are_bad_rows(tmp_path: Path) -> None:
    content = (
        '[{"user_id": 1, "item_id": 2}, 7, {"user_id": "\\ud800", "item_id": 2}, {"user_id": 3,'
        ' "item_id": 4}]'
    )
    table = events(write(tmp_path / "e.json", content))
    assert bad(table) == [(2, "unreadable row"), (3, "unreadable row")]
    assert users(table) == ["1", None, None, "3"]


def test_byte_order_mark_is_not_part_of_a_row(tmp_path: Path) -> None:
    table = events(write(tmp_path / "e.jsonl", "\ufeff" + lines(["1", '"2"'])))
    assert users(table) == ["1", "2"] and bad(table) == []


def test_deep_values_lose_only_their_row(tmp_path: Path) -> None:
    deep = '{"user_id": "u", "item_id": "i", "x": ' + "[" * 50_000 + "]" * 50_000 + "}\n"
    table = events(write(tmp_path / "e.jsonl", lines(['"u"', '"v"']) + deep + "{oops\n"))
    assert [row for row, _ in bad(table)] in ([3, 4], [4])
