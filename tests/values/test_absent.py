"""Missing values: one list for ids, values, texts, lists, triples and context; decimal commas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys import schema
from recsys.config import CanonicalSource, DataConfig, ItemTriplesConfig, SyntheticSource
from recsys.config.text_files import ABSENT_TEXTS
from recsys.data.attributes import Field
from recsys.data.context_columns import MISSING, UNKNOWN, ContextColumn
from recsys.data.request_attributes import RequestEncoder
from recsys.preparation.buckets import project
from recsys.preparation.event_roles import EventRules
from recsys.preparation.graphs import TripleRules, item_triples
from recsys.sources.validate import Layout, check_rows
from recsys.values.absent import CellRules, is_absent
from recsys.values.cells import extra, ids, numbers
from recsys.values.times import timestamps

COMMON = [
    "NaN",
    "nan",
    "None",
    "none",
    "null",
    "NULL",
    "NA",
    "N/A",
    "<NA>",
    "NaT",
    "\\N",
    "",
    " ",
    " nan ",
]
KEEP_ALL = CellRules(absent=())
TEXTS = pa.string()
LISTS = pa.list_(TEXTS)


def test_integers_in_the_list_are_missing_values() -> None:
    assert ids(pa.array([7, -1])).to_pylist() == ["7", "-1"]
    assert ids(pa.array([7, -1]), CellRules(absent=("-1",))).to_pylist() == ["7", None]


@pytest.mark.parametrize("text", COMMON)
def test_absent_text_is_missing_in_every_kind_of_column(text: str) -> None:
    column = pa.array([text, "1"])
    assert ids(column).to_pylist() == [None, "1"]
    assert extra(column, TEXTS).to_pylist() == [None, "1"]
    assert extra(column, pa.float64()).to_pylist() == [None, 1.0]
    assert extra(pa.array([[text, "a", None], None, []]), LISTS).to_pylist() == [["a"], None, []]
    assert [part.to_pylist() for part in numbers(column)] == [[None, 1.0], [False, False]]


def test_words_that_start_with_an_absent_text_are_values() -> None:
    texts = ["Nana", "NONE of us", "nullable", "n/a/b", "-", "0", "naN"]
    assert extra(pa.array(texts), TEXTS).to_pylist() == texts


def test_empty_list_keeps_all_values_except_empty_cells() -> None:
    assert ids(pa.array(["None", "NA", " ", None]), KEEP_ALL).to_pylist() == [
        "None",
        "NA",
        None,
        None,
    ]
    assert extra(pa.array([["None", " "]]), LISTS, KEEP_ALL).to_pylist() == [["None"]]
    assert numbers(pa.array(["nan"]), KEEP_ALL)[1].to_pylist() == [True]
    assert (
        check_rows(pa.table({"item_id": ["None"]}), Layout(schema.ITEMS, rules=KEEP_ALL))
        .column(0)[0]
        .as_py()
    )


def test_list_of_the_user_replaces_the_default() -> None:
    rules = CellRules.of(CanonicalSource(events=["e.csv"], absent=["-", "-999"]))
    assert ids(pa.array(["-", "nan", "-999"]), rules).to_pylist() == [None, "nan", None]
    assert [part.to_pylist() for part in numbers(pa.array(["-", "-999", "2"]), rules)] == [
        [None, None, 2.0],
        [False, False, False],
    ]
    raw = pa.table({"user_id": ["u"], "item_id": ["i"], "timestamp": ["-999"], "value": ["-"]})
    checked = check_rows(raw, Layout(schema.EVENTS, rules=rules)).to_pylist()[0]
    assert (checked["timestamp"], checked["value"], checked["_reason"]) == (None, 1.0, None)


def test_source_without_files_has_the_default_list() -> None:
    assert CellRules.of(SyntheticSource()) == CellRules() and CellRules().absent == ABSENT_TEXTS


def test_events_with_absent_cells_take_the_defaults() -> None:
    raw = {
        "user_id": "u",
        "item_id": "i",
        "timestamp": "NaT",
        "event_type": "nan",
        "value": "NaN",
        "split": "None",
    }
    checked = check_rows(
        pa.table({name: [text] for name, text in raw.items()}), Layout(schema.EVENTS)
    ).to_pylist()[0]
    assert checked == {
        "user_id": "u",
        "item_id": "i",
        "timestamp": None,
        "event_type": "interact",
        "value": 1.0,
        "split": None,
        "_reason": None,
    }
    floats = pa.table(
        {"user_id": ["u"] * 2, "item_id": ["i"] * 2, "value": [float("nan"), float("inf")]}
    )
    checked = check_rows(floats, Layout(schema.EVENTS))
    assert checked.column("value").to_pylist()[0] == 1.0
    assert checked.column("_reason").to_pylist() == [None, "value is not a finite number"]
    edges = pa.table({"src_user_id": ["a"], "dst_user_id": ["b"], "weight": [float("nan")]})
    assert check_rows(edges, Layout(schema.SOCIAL)).column("weight").to_pylist() == [1.0]


def test_floats_that_are_not_numbers_are_null_in_columns_of_the_source() -> None:
    for kind in (pa.float64(), pa.float32()):
        assert extra(pa.array([1.5, float("nan"), None], kind), kind).to_pylist() == [
            1.5,
            None,
            None,
        ]
    assert extra(pa.array([2.5, float("nan")]), TEXTS).to_pylist() == ["2.5", None]


def test_lists_of_a_slice_keep_their_rows() -> None:
    lists = pa.array([["x"], ["a", "nan"], None, ["null"], ["b"]], LISTS)
    assert extra(lists.slice(1), LISTS).to_pylist() == [["a"], None, [], ["b"]]


def _tails(column: Any, separator: str = "", rules: CellRules | None = None) -> list[str]:
    config = ItemTriplesConfig(
        item_columns=["genre"], separators={"genre": separator} if separator else {}
    )
    table = pa.table({"item_id": [f"i{row}" for row in range(len(column))], "genre": column})
    found = item_triples(table, TripleRules.of(config, table, rules or CellRules()))[1]
    return list(found[2].to_pylist())


def test_parts_of_a_separated_cell_are_absent_too() -> None:
    assert _tails(pa.array(["a|nan|b", "None", "| |c"]), "|") == ["genre=a", "genre=b", "genre=c"]
    assert _tails(pa.array(["a|None"]), "|", KEEP_ALL) == ["genre=a", "genre=None"]
    assert _tails(pa.array([["a", "nan"], ["null"]])) == ["genre=a"]


def test_context_columns_have_missing_values_and_decimal_commas() -> None:
    config = DataConfig(
        source=CanonicalSource(events=["e.csv"], decimal=","), context=["device", "warmth"]
    )
    rules = EventRules.of(config.model_copy(update={"context_numbers": ["warmth"]}))
    assert rules.cells.decimal == ","
    names = {
        "user_id": ["u", "v"],
        "item_id": ["i", "j"],
        "device": ["none", "tv"],
        "warmth": ["3,5", "nan"],
    }
    block = pa.table(
        {**names, **{name: pa.nulls(2, pa.string()) for name in ("_file", "_reason", "_raw")}}
    )
    block = block.append_column("_row", pa.array([1, 2])).append_column("_order", pa.array([1, 2]))
    found = project(block, rules)
    assert found.column("_context_device").to_pylist() == [None, "tv"]
    assert found.column("_context_warmth").to_pylist() == [3.5, None]


def test_requests_treat_absent_texts_as_missing_unless_the_model_knows_them() -> None:
    column = ContextColumn("device", ("tv",))
    assert [column.code(text, "context") for text in ("nan", "radio")] == [MISSING, UNKNOWN]
    assert ContextColumn("device", ("None",)).code("None", "context") > UNKNOWN
    encoder = RequestEncoder(
        [Field("club", "category", categories=("A",)), Field("tags", "list", 2, ("x",))]
    )
    rows = encoder.encode(
        [{"club": "nan", "tags": ["x", None, "NULL"]}, {"club": "B", "tags": ["nan"]}]
    )
    assert rows.codes_XS.tolist() == [[0, 2, -1], [1, 0, -1]]


COMMA = CellRules(decimal=",")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(
            ("3,5", 3.5),
            ("-0,25", -0.25),
            (",5", 0.5),
            ("7", 7.0),
            ("1.234,5", 1234.5),
            ("1.234.567", 1_234_567.0),
        ),
        *(
            ("1.234", 1234.0),
            ("1 234,5", 1234.5),
            ("1,5e3", 1500.0),
            ("3.5", None),
            ("1.23,4", None),
            ("1,2,3", None),
        ),
        *(("x", None), ("inf", None)),
    ],
)
def test_numbers_with_a_decimal_comma_are_read(text: str, expected: float | None) -> None:
    values, wrong = numbers(pa.array([text, None]), COMMA)
    assert (values.to_pylist(), wrong.to_pylist()) == ([expected, None], [expected is None, False])


def test_decimal_comma_is_refused_if_points_are_expected() -> None:
    assert numbers(pa.array(["3,5"]))[1].to_pylist() == [True]


def test_columns_of_the_source_with_decimal_commas_become_numbers_with_points() -> None:
    assert extra(pa.array(["3,5", "1.234,5", "nan", "much"]), TEXTS, COMMA).to_pylist() == [
        "3.5",
        "1234.5",
        None,
        "much",
    ]
    titles = ["Seven, the film", "3,5", "Paris, Texas"]
    assert extra(pa.array(titles), TEXTS, COMMA).to_pylist() == titles
    assert extra(pa.array(["1,5 2"]), pa.list_(pa.float64()), COMMA).to_pylist() == [[1.5, 2.0]]


ANYTHING = st.one_of(
    st.none(),
    st.text(max_size=12),
    st.text("0123456789-:.,/ TZ+eE", max_size=20),
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(str),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(ANYTHING, max_size=8),
    st.sampled_from([CellRules(), COMMA, CellRules((), "%d/%m/%Y %H:%M")]),
)
def test_no_text_raises_an_error_and_every_row_stays(
    texts: list[str | None], rules: CellRules
) -> None:
    column = pa.array(texts, pa.string())
    for found in (*numbers(column, rules), *timestamps(column, rules), ids(column, rules)):
        assert len(found) == len(texts)
    for kind in (TEXTS, pa.float64(), pa.list_(pa.float64())):
        assert len(extra(column, kind, rules)) == len(texts)
    assert len(extra(pa.array([texts, None], LISTS), LISTS, rules)) == 2


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(
        st.lists(st.one_of(st.none(), st.floats()), max_size=6).map(
            lambda cells: pa.array(cells, pa.float64())
        ),
        st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6).map(
            lambda cells: pa.array(cells, pa.int64())
        ),
        st.lists(st.integers(0, 2**64 - 1), max_size=6).map(
            lambda cells: pa.array(cells, pa.uint64())
        ),
        st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6).map(
            lambda cells: pa.array(cells, pa.timestamp("us"))
        ),
        st.lists(st.floats(width=16), max_size=6).map(
            lambda cells: pa.array(np.array(cells, dtype=np.float16))
        ),
    ),
    st.sampled_from([CellRules(), CellRules(time_format="%Y%m%d")]),
)
def test_typed_cells_never_raise_an_error(column: pa.Array, rules: CellRules) -> None:
    kinds = {column.type, TEXTS} if pa.types.is_floating(column.type) else {TEXTS}
    for found in (
        *numbers(column, rules),
        *timestamps(column, rules),
        *(extra(column, kind) for kind in kinds),
    ):
        assert len(found) == len(column)


def test_common_absent_texts_are_absent() -> None:
    assert [is_absent(text) for text in COMMON] == [True] * len(COMMON)
    assert not is_absent("Nana")
