"""Row rules: all reasons, the formats of times, ids and numbers, and no exceptions."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal

import pyarrow as pa
import pytest

from recsys import schema
from recsys.sources import validate
from recsys.sources.validate import Layout, check_rows, extra, ids, numbers, raw_text, timestamps

EVENTS = Layout(schema.EVENTS)
SOCIAL = Layout(schema.SOCIAL)
MOMENT = datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC)  # 1,000,000,000 s


@pytest.mark.parametrize(
    "text",
    [
        "1000000000",
        "1e9",
        "1000000000.0",
        "1000000000000",
        "1000000000000000",
        "1000000000000000000",
        " 1000000000 ",
        "2001-09-09 01:46:40",
        "2001-09-09T01:46:40Z",
        "2001-09-09T01:46:40.000+00:00",
        "2001-09-09T03:46:40+0200",
        "2001-09-09 03:46:40 +02",
        "2001/09/09 01:46:40",
    ],
)
def test_every_format_of_one_time_gives_that_time(text: str) -> None:
    times, wrong = timestamps(pa.array([text, None]))
    assert times.to_pylist() == [MOMENT, None]
    assert wrong.to_pylist() == [False, False]


def test_dates_and_fractions_are_read() -> None:
    times, wrong = timestamps(
        pa.array(["2001-09-09", "2001-9-9", "2001-09-09 01:46", "1000000000.25", ""])
    )
    midnight = datetime(2001, 9, 9, tzinfo=UTC)
    expected = [
        midnight,
        midnight,
        MOMENT.replace(second=0),
        MOMENT.replace(microsecond=250_000),
        None,
    ]
    assert times.to_pylist() == expected
    assert not any(wrong.to_pylist())


@pytest.mark.parametrize(
    "text", ["soon", "-5", "inf", "2001-13-09", "2001-02-30", "1e30", "9999-01-01", "-", "--"]
)
def test_invalid_times_are_refused(text: str) -> None:
    times, wrong = timestamps(pa.array([text]))
    assert (times.to_pylist(), wrong.to_pylist()) == ([None], [True])


def test_typed_times_are_read() -> None:
    naive = MOMENT.replace(tzinfo=None)
    columns = [
        pa.array([naive], pa.timestamp("ns")),
        pa.array([MOMENT], pa.timestamp("s", tz="Europe/Berlin")),
        pa.array([1_000_000_000], pa.int32()),
        pa.array([10**18], pa.uint64()),
        pa.array([1e9], pa.float32()),
        pa.array([Decimal("1000000000")]),
    ]
    for column in columns:
        times, wrong = timestamps(column)
        assert (times.type, times.to_pylist(), wrong.to_pylist()) == (
            schema.TIMESTAMP_TYPE,
            [MOMENT],
            [False],
        )
    days, _ = timestamps(pa.array([date(2001, 9, 9)]))
    assert days.to_pylist() == [datetime(2001, 9, 9, tzinfo=UTC)]
    floats, wrong = timestamps(pa.array([float("nan"), None]))
    assert (floats.to_pylist(), wrong.to_pylist()) == ([None, None], [False, False])
    assert timestamps(pa.array([[1]]))[1].to_pylist() == [True]


def test_ids_of_every_type_become_texts() -> None:
    assert ids(pa.array([7, None])).to_pylist() == ["7", None]
    assert ids(pa.array(["NA", "null", "\\N", "\tx "])).to_pylist() == [None, None, None, "x"]
    assert ids(pa.array(["a", "a"]).dictionary_encode()).to_pylist() == ["a", "a"]
    assert ids(pa.array([9007199254740993, 1], pa.int64())).to_pylist()[0] == "9007199254740993"


def test_numbers_of_every_type_are_read() -> None:
    values, wrong = numbers(pa.array([1.5, float("inf"), None]))
    assert (values.to_pylist(), wrong.to_pylist()) == ([1.5, None, None], [False, True, False])
    assert numbers(pa.array([Decimal("2.5")]))[0].to_pylist() == [2.5]
    assert numbers(pa.array([True]))[1].to_pylist() == [True]


def test_bad_events_have_reasons() -> None:
    rows = [
        ("u", "i", "1000000000", "view", "2", "train", None),
        ("", "i", "1000000000", "view", "2", "train", "missing user_id"),
        ("u", None, "1000000000", "view", "2", "train", "missing item_id"),
        ("", "", "x", "view", "x", "x", "missing user_id"),
        ("u", "i", "x", "view", "2", "train", "bad timestamp"),
        ("u", "i", "", "view", "NaN", "train", None),
        ("u", "i", "", "view", "-inf", "train", "value is not a finite number"),
        ("u", "i", "", "view", "2", "fold 3", "bad split"),
        ("u", "i", "", "view", "2", "Validation", None),
        ("u", "i", "", "", "", "", None),
    ]
    names = [
        schema.USER_ID,
        schema.ITEM_ID,
        schema.TIMESTAMP,
        schema.EVENT_TYPE,
        schema.VALUE,
        schema.SPLIT,
    ]
    raw = pa.table(
        {name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(names)}
    )
    checked = check_rows(raw, EVENTS)
    assert checked.column(schema.REASON).to_pylist() == [row[-1] for row in rows]
    assert checked.column(schema.SPLIT)[8].as_py() == "valid"
    assert checked.slice(9).to_pylist() == [
        {
            "user_id": "u",
            "item_id": "i",
            "timestamp": None,
            "event_type": "interact",
            "value": 1.0,
            "split": None,
            "_reason": None,
        }
    ]
    texts = raw_text(raw, checked.column(schema.REASON), ",")
    assert texts.to_pylist()[3:5] == [",,x,view,x,x", "u,i,x,view,2,train"]
    assert [text is None for text in texts.to_pylist()] == [row[-1] is None for row in rows]


def test_bad_social_edges_have_reasons() -> None:
    raw = pa.table(
        {
            "src_user_id": ["a", "a", None, "a", "a", "a"],
            "dst_user_id": ["b", "a", "b", " ", "b", "b"],
            "weight": ["", "1", "1", "1", "-1", "many"],
        }
    )
    reasons = (
        "self-loop",
        "missing src_user_id",
        "missing dst_user_id",
        "negative weight (distrust)",
        "bad weight",
    )
    expected = [None, *reasons]
    checked = check_rows(raw, SOCIAL)
    assert checked.column(schema.REASON).to_pylist() == expected
    assert checked.column(schema.WEIGHT).to_pylist()[0] == 1.0


def test_bad_triples_have_reasons() -> None:
    raw = pa.table(
        {
            "head": ["a", "", "a", "a"],
            "relation": ["r", "r", None, "r"],
            "tail": ["b", "b", "b", "nan"],
        }
    )
    checked = check_rows(raw, Layout(schema.KNOWLEDGE))
    assert checked.column(schema.REASON).to_pylist() == [
        None,
        "missing head",
        "missing relation",
        "missing tail",
    ]


def test_extra_columns_take_their_declared_type() -> None:
    assert extra(pa.array(["1.5", "x", None]), pa.float64()).to_pylist() == [1.5, None, None]
    assert extra(pa.array(["1 2.5", None]), pa.list_(pa.float64())).to_pylist() == [
        [1.0, 2.5],
        None,
    ]
    assert extra(pa.array([1, None]), pa.string()).to_pylist() == ["1", None]
    assert extra(pa.array([1, None], pa.int32()), pa.int64()).type == pa.int64()


def test_empty_table_keeps_the_schema() -> None:
    layout = Layout(schema.EVENTS, (("tag", pa.string()),))
    empty = pa.table({"user_id": pa.array([], pa.string()), "item_id": pa.array([], pa.string())})
    assert validate.finish(check_rows(empty, layout), layout, {}).schema.equals(layout.arrow)
